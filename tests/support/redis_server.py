"""A real redis-server on a loopback port."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import redis

from paceline.processes import ChildProcess, free_port


class RedisServer:
    """A redis-server on a loopback port with its data in a folder.

    Can be killed, frozen and started again.
    """

    def __init__(self, folder: Path, *arguments: str, port: int | None = None) -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.fail("redis-server is not installed; `make test` installs it")
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._command = [
            *(program, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(folder)),
            *("--appendonly", "yes", "--appendfsync", "always", "--save", "", *arguments),
        ]
        self._log = folder / "redis.log"
        self._process: ChildProcess | None = None

    def start(self) -> None:
        self._process = ChildProcess("redis-server", self._command, log=self._log)
        self._process.start()
        self._process.wait_until(self.listens, timeout_seconds=20)

    def listens(self) -> bool:
        with redis.Redis(port=self.port, socket_timeout=1, retry=None) as client:
            try:
                return bool(client.ping())
            except redis.AuthenticationError:
                return True
            except (redis.RedisError, OSError):
                return False

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()

    def freeze(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port)
