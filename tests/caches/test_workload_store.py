"""Kinds of work in a real Redis: one winner where two meet, bounds, forgetting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from paceline.caches.governance import MemoryGovernor
from paceline.caches.journal_client import RedisAddress
from paceline.caches.keys import KINDS_KEY, KindKeys, Shelf
from paceline.caches.workload_store import MAX_TEXTS, Position, WorkloadStore
from redis_cluster import RedisCluster
from redis_server import RedisServer

pytestmark = pytest.mark.redis

SCOPE = "tenant:a"


@pytest.fixture
def store(redis_server: RedisServer) -> Iterator[WorkloadStore]:
    with closing(RedisAddress(redis_server.url).connect()) as client:
        yield WorkloadStore(client)


def commit(
    store: WorkloadStore,
    position: Position,
    *put: str,
    gone: dict[str, str] | None = None,
    text: tuple[str, str] | None = None,
    scope: str = SCOPE,
    max_aliases: int = 16,
) -> Position | None:
    return store.commit(
        scope,
        position,
        put={name: f"record of {name}".encode() for name in put},
        gone=gone or {},
        text=text,
        max_aliases=max_aliases,
    )


def done(position: Position | None) -> Position:
    assert position is not None
    return position


def test_what_one_writes_another_reads(store: WorkloadStore) -> None:
    """First everything, then only what has changed since."""
    empty = store.sync(SCOPE, Position())
    assert (empty.position, empty.put, empty.text) == (Position(), {}, "")
    first = done(commit(store, Position(), "k1", "k2", text=("t1", "k1")))
    seen = store.sync(SCOPE, Position(), text="t1")
    assert (seen.whole, seen.position, seen.text) == (True, first, "k1")
    assert seen.put == {"k1": b"record of k1", "k2": b"record of k2"}
    second = done(commit(store, first, "k3", gone={"k2": "k1"}))
    since = store.sync(SCOPE, first, text="unknown")
    assert (since.whole, since.position, since.text) == (False, second, "")
    assert (set(since.put), since.gone) == ({"k3"}, {"k2": "k1"})
    assert store.sync(SCOPE, second).put == {}
    assert store.sync(SCOPE, Position()).gone == {"k2": "k1"}


def test_of_two_changes_from_one_position_one_is_made(store: WorkloadStore) -> None:
    """The second is refused, also where both are the first, and leaves nothing."""
    first = done(commit(store, Position(), "k1"))
    assert commit(store, Position(), "k2", text=("t2", "k2")) is None
    second = done(commit(store, first, "k3"))
    assert commit(store, first, "k4", gone={"k1": ""}) is None
    found = store.sync(SCOPE, Position(), text="t2")
    assert (set(found.put), found.position, found.text) == ({"k1", "k3"}, second, "")


def test_scopes_know_nothing_of_each_other(store: WorkloadStore) -> None:
    """The same names in two scopes are two records, and no key shows a scope's name."""
    commit(store, Position(), "k1", text=("t", "k1"))
    other = store.sync("tenant:b", Position(), text="t")
    assert (other.position, other.put, other.text) == (Position(), {}, "")
    assert not [key for key in KindKeys("tenant:secret").all() if "secret" in key]


def test_aliases_follow_and_are_bounded(store: WorkloadStore) -> None:
    """A merged name goes by its successor's successor; a dropped successor takes its aliases."""
    at = done(commit(store, Position(), "a", "b", "c", "d"))
    at = done(commit(store, at, gone={"a": "b"}))
    at = done(commit(store, at, gone={"b": "c"}))
    assert store.sync(SCOPE, Position()).gone == {"a": "c", "b": "c"}
    before = at
    at = done(commit(store, at, gone={"c": ""}))
    assert store.sync(SCOPE, before).gone == {"a": "", "b": "", "c": ""}
    assert store.sync(SCOPE, Position()).gone == {}
    for number in range(6):
        at = done(commit(store, at, f"n{number}", max_aliases=3))
        at = done(commit(store, at, gone={f"n{number}": "d"}, max_aliases=3))
    assert store.sync(SCOPE, Position()).gone == {"n3": "d", "n4": "d", "n5": "d"}
    at = done(commit(store, at, "n5", max_aliases=3))
    found = store.sync(SCOPE, Position())
    assert "n5" in found.put
    assert found.gone == {"n3": "d", "n4": "d"}


def test_requests_are_counted_as_what_a_name_goes_by(store: WorkloadStore) -> None:
    """Counts add up over proxies and merges; strangers and past generations are not counted."""
    at = done(commit(store, Position(), "a", "b"))
    assert store.count(SCOPE, at.generation, {"a": 3, "b": 1, "stranger": 9})
    at = done(commit(store, at, gone={"a": "b"}))
    assert store.count(SCOPE, at.generation, {"a": 2, "b": 1})
    used = store.use(SCOPE)
    assert {name: use.num_requests for name, use in used.items()} == {"b": 7}
    assert used["b"].last_at == pytest.approx(time.time(), abs=60)
    assert not store.count(SCOPE, "another", {"b": 1})


def test_texts_are_bounded(store: WorkloadStore, redis_server: RedisServer) -> None:
    """The names of the oldest texts go first."""
    keys = KindKeys(SCOPE)
    with redis_server.client() as client:
        at = done(commit(store, Position(), "k", text=("first", "k")))
        for number in range(MAX_TEXTS):
            client.hset(keys.texts, f"t{number}", "k")
            client.zadd(keys.recent, {f"t{number}": 2e15 + number})
        at = done(commit(store, at, "k", text=("last", "k")))
        assert client.hlen(keys.texts) == client.zcard(keys.recent) == MAX_TEXTS
    assert store.sync(SCOPE, at, text="first").text == ""
    assert store.sync(SCOPE, at, text=f"t{MAX_TEXTS - 1}").text == "k"


def test_what_is_not_used_goes_by_itself(store: WorkloadStore, redis_server: RedisServer) -> None:
    """Every key of a scope has the time that was asked for."""
    at = done(commit(store, Position(), "a", "b", text=("t", "a")))
    at = done(commit(store, at, gone={"b": "a"}))
    store.count(SCOPE, at.generation, {"a": 1}, ttl_seconds=100)
    with redis_server.client() as client:
        assert [0 < client.pttl(key) <= 100_000 for key in KindKeys(SCOPE).all()] == [True] * 8


def test_forgetting_leaves_nothing_and_refuses_what_came_before(
    store: WorkloadStore, redis_server: RedisServer
) -> None:
    """A tenant's scopes are emptied, those of a group too; a late change of before is refused."""
    store.register(Shelf(SCOPE, "a"))
    store.register(Shelf("group:g", "a"))
    store.register(Shelf("group:g", "b"))
    store.register(Shelf("tenant:b", "b"))
    positions = {
        scope: done(commit(store, Position(), "k1", "k2", text=("t", "k1"), scope=scope))
        for scope in (SCOPE, "group:g", "tenant:b")
    }
    with redis_server.client() as client:
        receipt = MemoryGovernor(client).forget(tenant="a")
        assert receipt.num_kinds == 4
        assert client.smembers(KINDS_KEY) == {Shelf("tenant:b", "b").name.encode()}
        left = [key for key in KindKeys(SCOPE).all() if client.exists(key)]
        assert left == [KindKeys(SCOPE).state]
        assert client.pttl(left[0]) > 0
    for scope in (SCOPE, "group:g"):
        assert commit(store, positions[scope], "k1", scope=scope) is None
        assert commit(store, Position(), "k1", scope=scope) is None
        found = store.sync(scope, positions[scope])
        assert (found.whole, found.put, found.position.version) == (True, {}, 0)
        assert found.forgotten_at == pytest.approx(time.time(), abs=60)
        assert done(commit(store, found.position, "k9", scope=scope))
    assert set(store.sync("tenant:b", Position()).put) == {"k1", "k2"}
    assert store.forget(scope="tenant:b") == 2


def test_a_stored_scope_is_shown_with_its_tenants(store: WorkloadStore) -> None:
    """Everything of the scopes that a tenant shares in."""
    store.register(Shelf("group:g", "a"))
    store.register(Shelf("group:g", "b"))
    store.register(Shelf("tenant:c", "c"))
    at = done(commit(store, Position(), "k1", "k2", scope="group:g"))
    at = done(commit(store, at, gone={"k2": "k1"}, scope="group:g"))
    store.count("group:g", at.generation, {"k1": 2})
    (found,) = store.stored(tenant="b")
    assert (found.scope, found.tenants) == ("group:g", ("a", "b"))
    assert (set(found.records), found.aliases) == ({"k1"}, {"k2": "k1"})
    assert found.use["k1"].num_requests == 2
    assert [stored.scope for stored in store.stored()] == ["group:g", "tenant:c"]


def test_in_a_cluster_a_scope_is_one_slot(tmp_path: Path) -> None:
    """The scripts' keys lie on one node, wherever a scope's slot is."""
    cluster = RedisCluster(tmp_path)
    try:
        cluster.start()
        with closing(RedisAddress(cluster.url).connect()) as client:
            store = WorkloadStore(client)
            for number in range(8):
                scope = f"tenant:t{number}"
                store.register(Shelf(scope, f"t{number}"))
                at = done(commit(store, Position(), "k", text=("t", "k"), scope=scope))
                assert store.count(scope, at.generation, {"k": 1})
                assert store.sync(scope, Position(), text="t").text == "k"
            assert store.forget(tenant="t3") == 1
            assert len(list(store.stored())) == 7
    finally:
        cluster.kill()
