"""Whatever dies, in whatever order: after recovery every record is everywhere once."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress

import pytest

from journals import Engine, check_accounts, open_store, record, stored_ids
from paceline.caches.journal_keeper import StoreLimits
from redis_server import RedisServer
from waiting import wait_until

pytestmark = pytest.mark.redis

LIMITS = StoreLimits(segment_tokens=200, seal_after_seconds=0.5)


class Wire:
    """Between engines and Redis: passes bytes on, late or not at all.

    Args:
        port: Redis's.
    """

    def __init__(self, port: int) -> None:
        self.delay_seconds = 0.0
        self._to = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        self.url = f"redis://127.0.0.1:{self._listening.getsockname()[1]}"

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._to))
                except OSError:
                    near.close()
                    continue
                self._open += [near, far]
                for pair in ((near, far), (far, near)):
                    self._threads.append(
                        threading.Thread(target=self._pass_on, args=pair, daemon=True)
                    )
                    self._threads[-1].start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                time.sleep(self.delay_seconds)
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Break every connection, whatever is under way on it."""
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()
        for end in (self._listening, *self._open):
            end.close()


def test_kills_and_cuts_lose_and_repeat_nothing(
    redis_server: RedisServer, engine: Callable[..., Engine]
) -> None:
    """Redis killed and restarted, connections cut in mid-answer, a slow wire: all arrive, once."""
    rng = random.Random(7)  # noqa: S311 -- no secret
    wire = Wire(redis_server.port)
    try:
        engines = [engine(wire.url, name, limits=LIMITS) for name in "ABC"]
        for e in engines:
            wait_until(e.journal.warmed_up.is_set)
        number = 0
        for round_ in range(12):
            for _ in range(rng.randrange(5, 25)):
                name = rng.randrange(3)
                one = record(number, origin="ABC"[name], scope=f"tenant:{number % 2}")
                engines[name].journal.publish(one)
                number += 1
                time.sleep(rng.random() * 0.01)
            if round_ % 4 == 3:
                redis_server.kill()
                time.sleep(0.2)
                redis_server.start()
            elif round_ % 4 == 1:
                wire.delay_seconds = rng.random() * 0.02
            else:
                wire.cut()
        wire.delay_seconds = 0.0
        for e in engines:
            assert e.journal.flush(30)
            assert e.journal.stats()["dropped"] == 0
        for index, e in enumerate(engines):
            others = (
                number - e.journal.stats()["published"] - e.journal.stats()["refused_duplicate"]
            )
            wait_until(lambda e=e, others=others: len(e.got) >= others, seconds=20)
            assert len(set(e.ids())) == len(e.got), f"engine {index} got a record twice"
        everything = {f"request-{n}" for n in range(number)}
        store = open_store(redis_server.url)
        with closing(store.client):
            kept = [i for shelf, _ in store.shelves() for i in stored_ids(store, shelf)]
            assert sorted(kept) == sorted(everything)
            check_accounts(store, "a")
            assert store.shelf_sizes(store.shelves()[0][0]).whole.num_records > 0
        late = engine(redis_server.url, "late")
        wait_until(late.journal.warmed_up.is_set)
        wait_until(lambda: set(late.ids()) == everything)
        assert len(late.got) == number
    finally:
        wire.close()


def test_a_cut_wire_costs_only_what_the_queue_cannot_hold(
    redis_server: RedisServer, engine: Callable[..., Engine]
) -> None:
    """While nothing gets through, publish queues, drops the oldest and says how many."""
    wire = Wire(redis_server.port)
    try:
        a = engine(wire.url, "A", queue_records=5)
        wait_until(a.journal.warmed_up.is_set)
        redis_server.freeze()
        wire.cut()
        for number in range(25):
            a.journal.publish(record(number))
        stats = a.journal.stats()
        assert (stats["queued"], stats["dropped"]) == (5, 20)
        redis_server.thaw()
        assert a.journal.flush(20)
        stats = a.journal.stats()
        assert stats["published"] >= 5  # those of a batch that was under way arrive as well
        assert stats["published"] + stats["dropped"] == 25
    finally:
        redis_server.thaw()
        wire.close()
