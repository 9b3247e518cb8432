"""Two proxies' kinds of work on one real Redis: racing, parted, forgotten."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import redis

from kinds import IDLE_SECONDS, OTHER, PLACE, Keeper, axis, direction
from paceline.caches.governance import MemoryGovernor
from paceline.caches.journal_client import RedisAddress
from paceline.caches.keys import KindKeys
from paceline.caches.workload_store import Position, WorkloadStore
from redis_server import RedisServer
from waiting import wait_until

pytestmark = pytest.mark.redis

NUM_TEXTS = 40


def name(
    keeper: Keeper, text: str, vectors: object, at: float = 1e10, place: object = PLACE
) -> str:
    return keeper.name(place, text, vectors, begun_at=at)  # type: ignore[arg-type]


def stored(server: RedisServer, scope: str = PLACE.scope) -> set[str]:
    with server.client() as client:
        return set(WorkloadStore(client).sync(scope, Position()).put)


def test_two_proxies_that_see_new_kinds_at_once_agree(redis_server: RedisServer) -> None:
    """Each kind ends with one name, whoever was first, although each sees texts of its own."""
    keepers = [Keeper(redis_server.url) for _ in range(4)]
    names: list[dict[int, str]] = [{} for _ in keepers]
    at_once = threading.Barrier(len(keepers))

    def work(number: int) -> None:
        at_once.wait(10)
        for kind in range(NUM_TEXTS):
            near = direction(*[0.0] * kind, 1.0, *[0.0] * (100 + number - kind), 0.2)
            names[number][kind] = name(keepers[number], f"{kind}-of-{number}", near)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(keepers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for kind in range(NUM_TEXTS):
        assert len({found[kind] for found in names}) == 1, kind
    assert stored(redis_server) == set(names[0].values())
    assert len(stored(redis_server)) == NUM_TEXTS
    for keeper in keepers:
        keeper.count({})
        kinds = {cluster.name: cluster for cluster in keeper.clusters(PLACE.scope)}
        assert sum(cluster.num_texts for cluster in kinds.values()) == NUM_TEXTS * len(keepers)


def test_a_text_keeps_its_name_in_every_proxy(redis_server: RedisServer) -> None:
    """A proxy that starts later gives a known text the name that it got, not the now nearest."""
    a = Keeper(redis_server.url)
    assert name(a, "first", direction(1, 0)) == "first"
    assert name(a, "between", direction(1, 0.9)) == "first"
    assert name(a, "second", direction(-0.2, 1)) == "second"
    b = Keeper(redis_server.url)
    assert name(b, "between", direction(1, 0.9)) == "first"
    assert name(b, "empty", direction()) == ""


def test_scopes_are_apart(redis_server: RedisServer) -> None:
    """The same text founds a kind in each scope, and neither sees the other's."""
    a = Keeper(redis_server.url)
    assert name(a, "x", axis(0)) == "x"
    assert name(a, "y", axis(0), place=OTHER) == "y"
    assert [c.name for c in a.clusters(PLACE.scope)] == ["x"]
    assert stored(redis_server, OTHER.scope) == {"y"}


def test_without_redis_names_come_and_are_reconciled_later(
    start_redis: Callable[..., RedisServer],
) -> None:
    """What two proxies found apart becomes one kind; other kinds keep their names."""
    server = start_redis()
    now = [0.0]
    a, b = (Keeper(server.url, monotonic=lambda: now[0]) for _ in range(2))
    assert name(a, "before", axis(5)) == "before"
    assert name(b, "before", axis(5)) == "before"
    server.kill()
    assert name(a, "near-a", direction(1, 0.1)) == "near-a"
    assert name(b, "near-b", direction(1, 0.2)) == "near-b"
    assert name(b, "only-b", axis(9)) == "only-b"
    assert name(a, "before", axis(5)) == "before"
    assert (a.num_local, b.num_local, a.is_shared) == (1, 2, False)
    assert a.count({PLACE.scope: {"before": 2}}) == {PLACE.scope: {"before": 2}}
    server.start()
    now[0] += 100
    assert a.count({PLACE.scope: {"before": 2}}) == {}
    assert b.count({}) == {}
    assert (a.num_local, b.num_local, a.is_shared) == (0, 0, True)
    assert stored(server) == {"before", "near-a", "only-b"}
    assert b.renamed == {"near-b": "near-a"}
    assert name(a, "near-b", direction(1, 0.2)) == "near-a"
    with server.client() as client:
        assert WorkloadStore(client).use(PLACE.scope)["before"].num_requests == 2


def test_a_frozen_redis_delays_naming_by_its_timeout_only(redis_server: RedisServer) -> None:
    """The first text waits for the answer's timeout, the next ones do not ask."""
    now = [0.0]
    a = Keeper(redis_server.url, monotonic=lambda: now[0])
    assert name(a, "x", axis(0)) == "x"
    redis_server.freeze()
    try:
        assert name(a, "y", axis(1)) == "y"
        assert not a.is_shared
        assert name(a, "z", axis(2)) == "z"
        assert a.num_local == 2
    finally:
        redis_server.thaw()
    now[0] += 100
    wait_until(lambda: a.count({}) == {} and a.is_shared)
    assert stored(redis_server) == {"x", "y", "z"}


def test_forgetting_reaches_proxies_and_what_they_were_about_to_write(
    redis_server: RedisServer,
) -> None:
    """Kinds go everywhere, texts that came before stay nameless, and later ones begin anew."""
    times = [100.0]
    a = Keeper(redis_server.url, clock=lambda: times[0])
    assert name(a, "x", axis(0), at=100) == "x"
    with redis_server.client() as client:
        assert MemoryGovernor(client).forget(tenant="a").num_kinds == 1
    assert name(a, "late", axis(1), at=101) == ""
    assert a.reset == [PLACE.scope]
    assert (a.num_clusters, stored(redis_server)) == (0, set())
    assert name(a, "new", axis(0)) == "new"
    with redis_server.client() as client:
        assert [s.tenants for s in WorkloadStore(client).stored(tenant="a")] == [("a",)]


def test_what_was_found_before_a_forgetting_is_not_brought_back(
    start_redis: Callable[..., RedisServer],
) -> None:
    """A proxy that was cut off drops what it found before the tenant was forgotten."""
    server = start_redis()
    now = [0.0]
    a = Keeper(server.url, monotonic=lambda: now[0])
    assert name(a, "x", axis(0)) == "x"
    server.kill()
    assert name(a, "old", axis(1), at=100.0) == "old"
    assert name(a, "young", axis(2), at=1e11) == "young"
    server.start()
    with server.client() as client:
        MemoryGovernor(client).forget(tenant="a")
    now[0] += 100
    a.count({})
    assert stored(server) == {"young"}
    assert a.num_local == 0


def test_a_full_scope_drops_what_is_least_asked_for_anywhere(redis_server: RedisServer) -> None:
    """Counts of all proxies decide, as Redis has them."""
    a, b = (Keeper(redis_server.url, max_clusters=3) for _ in range(2))
    for number in range(3):
        assert name(a, f"k{number}", axis(number), at=1000) == f"k{number}"
    b.count({PLACE.scope: {"k0": 5, "k2": 7}})
    assert name(a, "new", axis(9), at=1000) == "new"
    assert stored(redis_server) == {"k0", "k2", "new"}
    assert name(b, "k1", axis(1), at=1000) == "k1"


def test_kinds_that_nobody_asks_for_expire(redis_server: RedisServer) -> None:
    """A sweep drops them from Redis, and other proxies follow."""
    times, now = [redis_time(redis_server)], [0.0]
    a = Keeper(redis_server.url, clock=lambda: times[0], monotonic=lambda: now[0])
    b = Keeper(redis_server.url)
    name(a, "x", axis(0), at=times[0])
    name(b, "y", axis(1), at=times[0] + 2 * IDLE_SECONDS)
    times[0] += 1.5 * IDLE_SECONDS
    now[0] += 1000
    a.count({})
    b.count({})
    assert stored(redis_server) == {"y"}
    assert [c.name for c in b.clusters(PLACE.scope)] == ["y"]


def redis_time(server: RedisServer) -> float:
    with server.client() as client:
        return float(client.time()[0])


def test_records_of_a_newer_version_are_left_out(redis_server: RedisServer) -> None:
    """They neither end the naming nor are they touched."""
    with redis_server.client() as client:
        WorkloadStore(client).commit(
            PLACE.scope, Position(), put={"newer": b"?"}, gone={}, text=None, max_aliases=9
        )
        a = Keeper(redis_server.url)
        assert name(a, "x", axis(0)) == "x"
        assert a.is_shared
        assert client.hget(KindKeys(PLACE.scope).clusters, "newer") == b"?"


def test_without_a_redis_at_all_names_are_of_this_process() -> None:
    """Kinds are found, counted and swept in memory."""
    now, times = [0.0], [1000.0]
    a = Keeper(None, clock=lambda: times[0], monotonic=lambda: now[0])
    assert name(a, "x", axis(0), at=1000) == "x"
    assert name(a, "y", direction(1, 0.1), at=1000) == "x"
    assert a.count({PLACE.scope: {"x": 2}}) == {}
    now[0], times[0] = 1000, 1001 + IDLE_SECONDS
    a.count({})
    assert a.num_clusters == 0


def test_a_redis_that_refuses_us_is_as_one_that_is_away(redis_server: RedisServer) -> None:
    """Names come; the password is not in what is logged."""
    with redis_server.client() as client:
        client.config_set("requirepass", "right")
    a = Keeper(redis_server.url.replace("//", "//:wrong@"))
    assert name(a, "x", axis(0)) == "x"
    assert a.num_local == 1
    with redis.Redis(port=redis_server.port, password="right") as client:
        assert client.keys() == []
    assert "wrong" not in RedisAddress(redis_server.url.replace("//", "//:wrong@")).shown
