"""A speculator, arms and the journal on a real Redis: what a tenant's policy says reaches it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from journals import open_store
from paceline.adapters.arm_choice import HOLD_ROUNDS, ArmChoice
from paceline.adapters.request_info import RequestInfo
from paceline.adapters.sharing import open_shared_journal, share_arms
from paceline.adapters.speculator import Speculator
from paceline.caches import ModelFingerprint
from paceline.caches.journal_keeper import StoreLimits
from paceline.caches.tier_settings import TierLimits
from paceline.policies.bandits import decode_state
from paceline.policies.round_split import RoundTime
from redis_server import RedisServer
from waiting import wait_until

pytestmark = pytest.mark.redis

MODEL = ModelFingerprint(model="m", tokenizer="t")
LIMITS = StoreLimits(segment_tokens=100, seal_after_seconds=0.0)


@contextmanager
def sharing(redis: RedisServer) -> Iterator[Speculator]:
    """An engine's memory on the Redis."""
    speculator = Speculator()
    journal = open_shared_journal(speculator, redis.url, MODEL, limits=LIMITS)
    journal.start()
    try:
        yield speculator
        assert journal.flush(10)
    finally:
        journal.close()


def say(speculator: Speculator, name: str, tokens: list[int], info: RequestInfo) -> None:
    speculator.begin(info, tokens[:8])
    speculator.commit(name, tokens[8:])
    speculator.finish(name)


def test_what_one_engine_serves_the_next_one_drafts(redis_server: RedisServer) -> None:
    """An engine that starts on the Redis drafts from what another has served there."""
    text = list(range(100, 160))
    with sharing(redis_server) as speculator:
        say(speculator, "1", text, RequestInfo(request_id="1", tenant="a"))
    with sharing(redis_server) as speculator:
        asking = RequestInfo(request_id="2", tenant="a")
        wait_until(lambda: speculator.stats()["shared_tokens"] >= 60)
        speculator.begin(asking, text[:20])
        tree = speculator.propose(["2"], max_tokens=4)[0]
        assert tree.token_ids.tolist() == text[20:24]


def test_a_record_is_followed_within_seconds_and_its_lag_told(redis_server: RedisServer) -> None:
    """What one engine finishes reaches one that runs beside it; how late is counted there."""
    follower = Speculator()
    journal = open_shared_journal(follower, redis_server.url, MODEL, limits=LIMITS)
    journal.start()
    try:
        wait_until(journal.warmed_up.is_set)
        with sharing(redis_server) as speculator:
            text = list(range(300, 360))
            say(speculator, "1", text, RequestInfo(request_id="1", tenant="a"))
            wait_until(lambda: follower.stats()["shared_tokens"] >= 60)
        lag = journal.lag()
        assert sum(lag.counts) == 1
        assert 0 < lag.total_seconds < 10
    finally:
        journal.close()


def test_redis_keeps_no_more_of_a_tenant_than_its_policy_allows(
    redis_server: RedisServer,
) -> None:
    """The oldest records go until what is left fits; a tenant without a limit keeps all."""
    limits = TierLimits(stored_tokens=500)
    with sharing(redis_server) as speculator:
        for number in range(40):
            text = list(range(1000 * number, 1000 * number + 50))
            for tenant, its in (("bounded", limits), ("free", TierLimits())):
                name = f"{tenant}{number}"
                info = RequestInfo(request_id=name, tenant=tenant, limits=its)
                say(speculator, name, text, info)
        store = open_store(redis_server.url, MODEL)
        with closing(store.client):
            wait_until(lambda: store.tenant_sizes("free").num_tokens == 2000)
            wait_until(lambda: 0 < store.tenant_sizes("bounded").num_tokens <= 500)


def play(arms: ArmChoice, num_rounds: int) -> None:
    """Rounds of one request whose drafts are never right."""
    arms.open(RequestInfo(request_id="r", tenant="a"))
    length = 100
    for _ in range(num_rounds):
        (caps,) = arms.begin(["r"], [length])
        arms.issued([length], [caps.memory])
        length += 1
        arms.seen(["r"], [length], lambda: {"r": [1]})
        arms.took(RoundTime(1, 1 + caps.memory, 0.02 + 0.004 * caps.memory))


def test_arms_are_there_after_a_restart_and_at_other_engines(redis_server: RedisServer) -> None:
    """What they have brought is read back under the engine's name, and heard of under others."""
    first = ArmChoice(max_tokens=8)
    sync = share_arms(first, redis_server.url, MODEL, replica="one")
    wait_until(lambda: sync.stats()["connected"] == 1)
    play(first, 200)
    assert first.reason("r") == "none"
    sync.close(10)
    again, beside = ArmChoice(max_tokens=8), ArmChoice(max_tokens=8)
    for arms, replica, count in ((again, "one", "loaded"), (beside, "two", "received")):
        sync = share_arms(arms, redis_server.url, MODEL, replica=replica)
        wait_until(lambda sync=sync: sync.stats()["connected"] == 1)  # type: ignore[misc]
        play(arms, 1)
        assert sync.stats()[count] == 1
        # nothing is burned in: the arm is chosen anew after the first hold, of what is known
        play(arms, 2 * HOLD_ROUNDS)
        assert arms.figures()["arms_burned_in"] == 0
        assert arms.reason("r") == "none"
        sync.close(10)
    keys = decode_state(again.shared.state()).keys
    assert [key.key for key in keys] == ["tenant:a"]
