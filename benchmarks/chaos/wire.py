"""A wire between engines and their store that can be slow, dead or cut."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

CHUNK_BYTES: Final = 65_536
POLL_SECONDS: Final = 0.01


class Wire:
    """Passes bytes on between whoever connects to it and a server.

    Args:
        connect: opens a connection to the server; raises OSError while it is away.

    Attributes:
        delay_seconds: how long every piece is held back.
        is_dead: True lets nothing through, in either direction, and nobody knows it.
        port: where it listens on 127.0.0.1.
    """

    def __init__(self, connect: Callable[[], socket.socket]) -> None:
        self.delay_seconds = 0.0
        self.is_dead = False
        self._connect = connect
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        self.port = int(self._listening.getsockname()[1])

    def cut(self) -> None:
        """Break every connection, whatever is under way on it."""
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Break everything and accept nobody any more."""
        self.is_dead = False
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()
        for end in (self._listening, *self._open):
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                try:
                    far = self._connect()
                except OSError:
                    near.close()
                    continue
                self._open += [near, far]
                for pair in ((near, far), (far, near)):
                    thread = threading.Thread(target=self._pass_on, args=pair, daemon=True)
                    thread.start()
                    self._threads.append(thread)

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                time.sleep(self.delay_seconds)
                while self.is_dead:
                    time.sleep(POLL_SECONDS)
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
