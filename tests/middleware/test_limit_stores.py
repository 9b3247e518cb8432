"""Limits counted in this process and in a real Redis, at one injected clock: the same answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paceline.caches.journal_client import UNREACHABLE, RedisAddress
from paceline.middleware.limit_redis import RedisLimits
from paceline.middleware.limit_store import Ask, Booking, Bound, Decision, LocalLimits
from paceline.policies.limits import LimitsPolicy
from redis_cluster import RedisCluster
from redis_server import RedisServer

pytestmark = pytest.mark.redis

MINUTE = 60_000
START = 1_700_000_000_000


class Clock:
    """Milliseconds that stand still until moved."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now


@asynccontextmanager
async def connected(url: str, **options: Any) -> Any:
    store = RedisLimits(RedisAddress(url), lost_seconds=5, **options)
    await store.connect()
    try:
        yield store
    finally:
        await store.close()


def ask(number: int, *bounds: Bound, tenant: str = "shop", tokens: int = 1) -> Ask:
    return Ask(f"r{number}", tenant, bounds, tokens)


@contextmanager
def emptied(server: RedisServer) -> Iterator[None]:
    with server.client() as client:
        client.flushall()
    yield


steps = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 50), st.integers(0, 5_000), st.integers(0, 150_000)),
        st.sampled_from(("admit", "more", "less", "end")),
        st.integers(0, 900),
    ),
    max_size=40,
)
small = st.one_of(st.none(), st.integers(1, 5), st.integers(200, 1_500))
policies = st.builds(
    LimitsPolicy, requests_per_minute=small, tokens_per_minute=small, concurrency=small
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(policies, policies, steps)
def test_redis_says_what_the_window_says(
    redis_server: RedisServer,
    whole: LimitsPolicy,
    part: LimitsPolicy,
    doings: Sequence[tuple[int, str, int]],
) -> None:
    """Decisions, what remains, when it is reset and how long to wait: number for number."""
    bounds = (Bound("", whole), Bound("nightly build", part))

    async def compare() -> None:
        clock = Clock()
        local = LocalLimits(clock)
        options = {"now_ms": clock, "lease_ms": 10**9}
        async with connected(redis_server.url, **options) as shared:
            held: list[tuple[Ask, Decision]] = []
            for number, (gap, doing, amount) in enumerate(doings):
                clock.now += gap
                if doing == "admit":
                    request = ask(number, *bounds, tokens=amount + 1)
                    decision = await local.admit(request)
                    assert await shared.admit(request) == decision
                    if decision.admitted:
                        held.append((request, decision))
                elif held:
                    request, decision = held[amount % len(held)]
                    tokens = -amount if doing == "less" else amount
                    booking = Booking(request, decision.places, tokens, doing == "end")
                    await local.book(booking)
                    await shared.book(booking)

    with emptied(redis_server):
        asyncio.run(compare())


@pytest.mark.parametrize("limit", [50, 300])
def test_two_proxies_together_let_in_the_limit(redis_server: RedisServer, limit: int) -> None:
    """Overload for three minutes at an injected clock: in each minute within 1 % of the limit."""
    bound = Bound("", LimitsPolicy(requests_per_minute=limit))

    async def overload() -> list[int]:
        clock, let_in = Clock(), []
        async with (
            connected(redis_server.url, now_ms=clock) as one,
            connected(redis_server.url, now_ms=clock) as other,
        ):
            for number in range(6 * limit):
                clock.now = START + number * 3 * MINUTE // (6 * limit)
                store = (one, other)[number % 2]
                if (await store.admit(ask(number, bound))).admitted:
                    let_in.append(clock.now - START)
        return let_in

    times = asyncio.run(overload())
    for minute in range(3):
        found = sum(minute * MINUTE <= t < (minute + 1) * MINUTE for t in times)
        assert 0.99 * limit <= found <= limit
    counts = [sum(t <= other < t + MINUTE for other in times) for t in times]
    assert max(counts) == limit


def test_all_bounds_must_let_it_in_and_none_counts_what_another_refuses(
    redis_server: RedisServer,
) -> None:
    """A workload at its limit leaves the tenant's alone, and the other way round."""
    tenant = Bound("", LimitsPolicy(requests_per_minute=5, tokens_per_minute=1_000, concurrency=9))
    narrow = Bound("batch", LimitsPolicy(requests_per_minute=2, concurrency=9))

    async def run() -> None:
        clock = Clock()
        async with connected(redis_server.url, now_ms=clock) as shared:
            for store in (LocalLimits(clock), shared):
                both = [await store.admit(ask(n, tenant, narrow, tokens=10)) for n in range(4)]
                assert [decision.admitted for decision in both] == [True, True, False, False]
                last = both[-1].states[0]
                assert last.requests is not None
                assert last.tokens is not None
                assert (last.requests.remaining, last.tokens.remaining) == (3, 980)
                assert last.num_active == 2
                alone = [await store.admit(ask(10 + n, tenant, tokens=10)) for n in range(4)]
                assert [decision.admitted for decision in alone] == [True] * 3 + [False]

    asyncio.run(run())


def test_a_tenants_requests_do_not_count_for_another(redis_server: RedisServer) -> None:
    """Names are free text; none reaches into another's keys."""
    bound = Bound("", LimitsPolicy(requests_per_minute=1))
    named = Bound("a:b}", LimitsPolicy(requests_per_minute=1))

    async def run() -> None:
        async with connected(redis_server.url) as store:
            for tenant in ("a", "b", "a:b", "{a}"):
                for which in (bound, named):
                    assert (await store.admit(ask(1, which, tenant=tenant))).admitted
                    assert not (await store.admit(ask(2, which, tenant=tenant))).admitted

    asyncio.run(run())


def test_the_places_of_a_proxy_that_died_are_free_after_a_while(
    redis_server: RedisServer,
) -> None:
    """A lease runs out unless somebody speaks for it; a late sign of life takes no place back."""
    bound = Bound("", LimitsPolicy(concurrency=2))

    async def run() -> None:
        clock = Clock()
        options = {"now_ms": clock, "lease_ms": 15_000}
        async with (
            connected(redis_server.url, **options) as dying,
            connected(redis_server.url, **options) as living,
        ):
            dead = await dying.admit(ask(1, bound))
            alive = await living.admit(ask(2, bound))
            assert dead.admitted
            assert alive.admitted
            for _ in range(2):
                clock.now += 7_000
                assert not (await living.admit(ask(3, bound))).admitted
                await living.book(Booking(ask(2, bound), alive.places, 0, ended=False))
            clock.now += 1_000
            freed = await living.admit(ask(4, bound))
            assert freed.admitted
            assert not (await living.admit(ask(5, bound))).admitted
            await living.book(Booking(ask(2, bound), alive.places, 0, ended=True))
            await living.book(Booking(ask(2, bound), alive.places, 0, ended=False))
            assert (await living.admit(ask(6, bound))).states[0].num_active == 2

    asyncio.run(run())


def test_by_redis_own_clock_and_nothing_stays(redis_server: RedisServer) -> None:
    """Without a clock of ours Redis' counts; every key goes by itself."""
    bound = Bound("", LimitsPolicy(requests_per_minute=1, tokens_per_minute=10, concurrency=3))

    async def run() -> None:
        async with connected(redis_server.url, window_ms=300, lease_ms=300) as store:
            assert (await store.admit(ask(1, bound))).admitted
            decision = await store.admit(ask(2, bound))
            state = decision.states[0].requests
            assert not decision.admitted
            assert state is not None
            assert 0 < state.wait_ms <= 300
            await asyncio.sleep(state.wait_ms / 1000 + 0.01)
            assert (await store.admit(ask(3, bound))).admitted

    asyncio.run(run())
    with redis_server.client() as client:
        keys = list(client.scan_iter("paceline:limits:*"))
        assert len(keys) == 3
        assert all(0 < client.pttl(key) <= 900 for key in keys)


def test_a_long_debt_keeps_its_key(redis_server: RedisServer) -> None:
    """What takes ten minutes to pay back is remembered that long."""
    bound = Bound("", LimitsPolicy(tokens_per_minute=100))

    async def run() -> None:
        async with connected(redis_server.url) as store:
            assert (await store.admit(ask(1, bound, tokens=1_050))).admitted

    asyncio.run(run())
    with redis_server.client() as client:
        assert client.pttl("paceline:limits:1:{shop}:tokens:") > 11 * MINUTE


def test_calls_that_come_together_go_together(redis_server: RedisServer) -> None:
    """A thousand at once let in exactly the limit; scripts that Redis forgot are sent again."""
    bound = Bound("", LimitsPolicy(requests_per_minute=300))

    async def run() -> int:
        async with connected(redis_server.url) as store:
            first = asyncio.gather(*(store.admit(ask(n, bound)) for n in range(500)))
            admitted = sum(decision.admitted for decision in await first)
            with redis_server.client() as client:
                client.script_flush()
            second = asyncio.gather(*(store.admit(ask(500 + n, bound)) for n in range(500)))
            return admitted + sum(decision.admitted for decision in await second)

    assert asyncio.run(run()) == 300


def test_a_redis_that_stands_still_is_not_waited_for(redis_server: RedisServer) -> None:
    """All who wait are told at once; the answers that come late are nobody else's."""
    bound = Bound("", LimitsPolicy(requests_per_minute=10**6))
    other = Bound("", LimitsPolicy(tokens_per_minute=77))

    async def run() -> None:
        store = RedisLimits(RedisAddress(redis_server.url), lost_seconds=0.1)
        await store.connect()
        assert (await store.admit(ask(0, bound))).admitted
        redis_server.freeze()
        try:
            calls = (store.admit(ask(n, bound)) for n in range(600))
            found = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(error, (*UNREACHABLE, TimeoutError)) for error in found)
            with pytest.raises((*UNREACHABLE, TimeoutError)):
                await store.connect()
        finally:
            redis_server.thaw()
        await store.connect()
        state = (await store.admit(ask(1, other, tokens=7))).states[0]
        assert state.requests is None
        assert state.tokens is not None
        assert (state.tokens.limit, state.tokens.remaining) == (77, 70)
        await store.close()

    asyncio.run(run())


def test_in_a_cluster_each_tenant_is_where_its_slot_is(tmp_path: Path) -> None:
    """Every decision is one script in one slot, whichever node holds it."""
    cluster = RedisCluster(tmp_path)
    cluster.start()
    try:
        bound = Bound("", LimitsPolicy(requests_per_minute=2, tokens_per_minute=9, concurrency=9))
        batch = Bound("batch", LimitsPolicy(requests_per_minute=9, tokens_per_minute=9))

        async def run() -> None:
            async with connected(cluster.url) as store:
                for tenant in ("a", "b", "c", "d", "e"):
                    asks = [ask(n, bound, batch, tenant=tenant) for n in range(3)]
                    found = await asyncio.gather(*(store.admit(request) for request in asks))
                    assert [decision.admitted for decision in found] == [True, True, False]
                    await store.book(Booking(asks[0], found[0].places, 3, ended=True))

        asyncio.run(run())
    finally:
        cluster.kill()
