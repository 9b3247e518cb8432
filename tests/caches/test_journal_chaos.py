"""Whatever dies, in whatever order: after recovery every record is everywhere once."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from journals import Engine, check_accounts, open_store, record, stored_ids
from paceline.benchmarks.chaos.wire import Wire
from paceline.caches.journal_keeper import StoreLimits
from redis_server import RedisServer
from waiting import wait_until

pytestmark = pytest.mark.redis

LIMITS = StoreLimits(segment_tokens=200, seal_after_seconds=0.5)


@pytest.fixture
def wire(redis_server: RedisServer) -> Iterator[Wire]:
    """A wire to Redis."""
    made = Wire(lambda: socket.create_connection(("127.0.0.1", redis_server.port)))
    yield made
    made.close()


def url(wire: Wire) -> str:
    return f"redis://127.0.0.1:{wire.port}"


def test_kills_and_cuts_lose_and_repeat_nothing(
    redis_server: RedisServer, wire: Wire, engine: Callable[..., Engine]
) -> None:
    """Redis killed and restarted, connections cut in mid-answer, a slow wire: all arrive, once."""
    rng = random.Random(7)  # noqa: S311 -- no secret
    engines = [engine(url(wire), name, limits=LIMITS) for name in "ABC"]
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
        others = number - e.journal.stats()["published"] - e.journal.stats()["refused_duplicate"]
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


def test_a_cut_wire_costs_only_what_the_queue_cannot_hold(
    redis_server: RedisServer, wire: Wire, engine: Callable[..., Engine]
) -> None:
    """While nothing gets through, publish queues, drops the oldest and says how many."""
    try:
        a = engine(url(wire), "A", queue_records=5)
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
