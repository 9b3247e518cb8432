"""A replay follows a real Redis: what it held, what comes, what is forgotten, across restarts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from journals import MODEL, append, keeper, open_store
from paceline.caches.governance import MemoryGovernor
from paceline.caches.journal_store import JournalStore
from paceline.caches.keys import namespace_of
from paceline.online.journal_follower import JournalFollower
from paceline.online.replay import Replay, ReplaySettings
from redis_server import RedisServer
from sessions import Clock, turn
from waiting import wait_until

pytestmark = pytest.mark.redis


@pytest.fixture
def store(redis_server: RedisServer) -> Iterator[JournalStore]:
    """The journal from outside."""
    made = open_store(redis_server.url)
    with closing(made.client):
        made.register(MODEL)
        yield made


Follow = Callable[[], tuple[Replay, JournalFollower]]


@pytest.fixture
def follow(redis_server: RedisServer, tmp_path: Path) -> Iterator[Follow]:
    """Start a learner's following in one folder; close it before the next."""
    with ExitStack() as exits:

        def start() -> tuple[Replay, JournalFollower]:
            replay = Replay.open(
                tmp_path / "replay",
                namespace=namespace_of(MODEL),
                settings=ReplaySettings(held_out_share=0.0),
                clock=Clock(time.time()),
            )
            made = JournalFollower(redis_server.url, replay)
            made.start()
            exits.callback(made.close)
            return replay, made

        yield start


def numbered(number: int, **changes: object) -> object:
    now = time.time()
    return turn(number, [number, 1], [2], session="", started_at=now, at=now, **changes)


def held(replay: Replay) -> list[int]:
    return sorted(int(p.token_ids[0]) for p in replay.passages())


def test_what_redis_holds_and_what_comes_is_taken(store: JournalStore, follow: Follow) -> None:
    """Sealed blocks, tails and new records, each once."""
    append(store, *(numbered(n) for n in range(5)))  # type: ignore[arg-type]
    made, _ = keeper(segment_records=3)
    made.work(store)
    append(store, *(numbered(n) for n in range(5, 8)))  # type: ignore[arg-type]
    replay, follower = follow()
    wait_until(follower.caught_up.is_set)
    assert held(replay) == list(range(8))
    append(store, numbered(8), numbered(9, learn=False))  # type: ignore[arg-type]
    wait_until(lambda: replay.stats()["skipped_not_learned"] == 1)
    assert held(replay) == list(range(9))


def test_nothing_is_counted_twice_after_a_restart(store: JournalStore, follow: Follow) -> None:
    """A learner that comes back takes what came meanwhile and no more, sealed or not."""
    append(store, *(numbered(n) for n in range(5)))  # type: ignore[arg-type]
    replay, follower = follow()
    wait_until(lambda: replay.stats()["taken"] == 5)
    follower.close()
    append(store, *(numbered(n) for n in range(5, 9)))  # type: ignore[arg-type]
    made, _ = keeper(segment_records=3)
    made.work(store)
    again, follower = follow()
    wait_until(follower.caught_up.is_set)
    assert again.stats()["taken"] == 4
    assert held(again) == list(range(9))
    append(store, numbered(9))  # type: ignore[arg-type]
    wait_until(lambda: held(again) == list(range(10)))


def test_a_learner_that_was_killed_repeats_what_it_had_not_saved(
    store: JournalStore, follow: Follow
) -> None:
    """Positions and passages are saved together: what was lost is read again."""
    append(store, *(numbered(n) for n in range(3)))  # type: ignore[arg-type]
    replay, follower = follow()
    wait_until(lambda: replay.stats()["taken"] == 3)
    replay.save()
    append(store, *(numbered(n) for n in range(3, 6)))  # type: ignore[arg-type]
    wait_until(lambda: replay.stats()["taken"] == 6)
    again, _ = follow()  # beside the first, which has not saved since
    wait_until(lambda: again.stats()["taken"] == 3)
    assert held(again) == list(range(6))
    follower.close()


def test_what_was_forgotten_while_it_was_away_is_gone(store: JournalStore, follow: Follow) -> None:
    """Tombstones that still stand are taken in before anything is learned from."""
    append(store, numbered(1), numbered(2, tenant="b"))  # type: ignore[arg-type]
    replay, follower = follow()
    wait_until(lambda: replay.stats()["taken"] == 2)
    follower.close()
    MemoryGovernor(store.client).forget(tenant="a")
    again, follower = follow()
    wait_until(follower.caught_up.is_set)
    assert [p.tenant for p in again.passages()] == ["b"]
    MemoryGovernor(store.client).forget(tenant="b")
    wait_until(lambda: again.passages() == [])
    assert again.stats()["forgotten"] == 2
    wait_until(lambda: again.stats()["saved"] >= 1)  # nor does the file hold it
    assert not again.save()


def test_an_absent_redis_is_waited_for(
    store: JournalStore, follow: Follow, redis_server: RedisServer
) -> None:
    """What was held stays, and what comes after the return is taken."""
    append(store, numbered(1))  # type: ignore[arg-type]
    replay, follower = follow()
    wait_until(lambda: replay.stats()["taken"] == 1)
    redis_server.kill()
    wait_until(lambda: follower.stats()["disconnections"] > 0)
    assert held(replay) == [1]
    redis_server.start()
    append(store, numbered(2))  # type: ignore[arg-type]
    wait_until(lambda: held(replay) == [1, 2])


def test_a_tenants_retention_reaches_what_is_learned_from(
    store: JournalStore, follow: Follow
) -> None:
    """What Redis no longer keeps of a tenant is not kept here either."""
    old = time.time() - 1000
    append(store, turn(1, [1], [2], session="", started_at=old, at=old))
    replay, follower = follow()
    wait_until(lambda: held(replay) == [1])
    append(store, numbered(2), retention_seconds=500.0)  # type: ignore[arg-type]
    wait_until(lambda: replay.stats()["taken"] == 2)
    follower.close()
    again, follower = follow()
    wait_until(lambda: held(again) == [2])
    assert replay.stats()["expired"] + again.stats()["expired"] == 1
