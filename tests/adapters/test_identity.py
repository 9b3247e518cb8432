"""Identity from a request's extra arguments fails closed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.adapters.identity import (
    NO_DRAFTS,
    DraftLimits,
    draft_limits,
    new_request_id,
    record_id,
    record_id_of,
    request_info_from_xargs,
)
from paceline.caches.tier_settings import TierLimits

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
names = st.sampled_from(
    [
        *("tenant", "workload", "session", "group", "record"),
        *("sharing", "tiers", "capacity", "retention_seconds", "stored_tokens"),
        *("speculation", "draft_tokens", "draft_sources", "learn", "drafter"),
    ]
).map("paceline_{}".format)


@given(st.dictionaries(names | st.text(), anything) | anything)
def test_whatever_is_sent_nothing_raises_and_only_a_named_tenant_shares(xargs: Any) -> None:
    """Any input gives an identity; one without a proper tenant has no scope and records nothing."""
    info = request_info_from_xargs("r", xargs)
    assert info.request_id == "r"
    assert draft_limits(xargs).most("memory", 8) in range(9)
    if not info.scope:
        assert not info.record
    else:
        assert info.tenant == xargs["paceline_tenant"]


def test_what_the_proxy_sends_is_understood() -> None:
    """All fields arrive."""
    info = request_info_from_xargs(
        "r",
        {
            "paceline_tenant": "t",
            "paceline_workload": "w",
            "paceline_session": "s",
            "paceline_group": "g",
            "paceline_record": 0,
        },
    )
    assert (info.tenant, info.workload, info.session, info.group) == ("t", "w", "s", "g")
    assert info.record is False
    assert info.scope == "group:g"


@pytest.mark.parametrize(
    "xargs",
    [
        None,
        {},
        {"paceline_tenant": 3},
        {"paceline_tenant": ""},
        {"paceline_tenant": "t", "paceline_group": ["g"]},
        {"paceline_tenant": "t", "paceline_record": "yes"},
        {"paceline_tenant": "t", "paceline_record": True},
        {"paceline_tenant": "t", "paceline_learn": True},
        {"paceline_tenant": "t", "paceline_learn": "1"},
        {"paceline_tenant": "t", "paceline_drafter": ""},
        {"paceline_tenant": "t", "paceline_drafter": 7},
        {"paceline_tenant": "t", "paceline_sharing": "everybody"},
        {"paceline_tenant": "t", "paceline_sharing": "global", "paceline_group": "g"},
        {"paceline_tenant": "t", "paceline_tiers": "session,cellar"},
        {"paceline_tenant": "t", "paceline_tiers": 3},
        {"paceline_tenant": "t", "paceline_capacity": 1},
        {"paceline_tenant": "t", "paceline_capacity": True},
        {"paceline_tenant": "t", "paceline_stored_tokens": 0},
        {"paceline_tenant": "t", "paceline_stored_tokens": "9"},
        {"paceline_tenant": "t", "paceline_retention_seconds": -1},
        {"paceline_tenant": "t", "paceline_retention_seconds": float("nan")},
        {"paceline_tenant": "t", "paceline_retention_seconds": 10**400},
    ],
)
def test_anything_doubtful_belongs_to_nobody(xargs: Any) -> None:
    """A missing or malformed identity shares with no one."""
    assert request_info_from_xargs("r", xargs).scope == ""


@pytest.mark.parametrize(
    ("xargs", "learn", "group"),
    [
        ({}, False, ""),
        ({"paceline_learn": 1}, True, ""),
        ({"paceline_learn": 1, "paceline_drafter": "bank"}, True, "bank"),
        ({"paceline_learn": 1, "paceline_drafter": "shared"}, True, ""),
        ({"paceline_learn": 1, "paceline_record": 0}, False, ""),
    ],
)
def test_learning_is_asked_for_and_needs_a_record(
    xargs: dict[str, Any], learn: bool, group: str
) -> None:
    """Nobody learns from a request that does not say so, or leaves no record."""
    info = request_info_from_xargs("r", {"paceline_tenant": "t", **xargs})
    assert (info.learn, info.drafter_group) == (learn, group)


def test_limits_and_global_sharing_are_understood() -> None:
    """What a tenant's policy narrows, and that it shares with all others that do."""
    info = request_info_from_xargs(
        "r",
        {
            "paceline_tenant": "t",
            "paceline_sharing": "global",
            "paceline_tiers": "session",
            "paceline_capacity": 1000,
            "paceline_stored_tokens": 5000,
            "paceline_retention_seconds": 60,
        },
    )
    assert info.scope == "global"
    assert info.limits == TierLimits(
        session=True,
        workload=False,
        tenant=False,
        capacity=1000,
        retention_seconds=60.0,
        stored_tokens=5000,
    )
    off = request_info_from_xargs("r", {"paceline_tenant": "t", "paceline_tiers": ""})
    assert off.limits == TierLimits(session=False, workload=False, tenant=False)


@given(
    st.integers(0, 99),
    st.none() | st.integers(0, 99),
    st.text("0123456789abcdef", min_size=8, max_size=8),
)
def test_engines_and_the_proxy_name_a_sequence_alike(
    prompt: int, choice: int | None, random: str
) -> None:
    """Whatever an engine puts around the proxy's id, both record it under one name."""
    ours = new_request_id()
    before = "" if choice is None else f"{choice}_"
    text = record_id_of(f"{before}cmpl-{ours}-{prompt}-{random}")
    assert text == record_id(ours, prompt=prompt, choice=choice or 0)
    chat = record_id(ours, choice=choice or 0)
    assert record_id_of(f"{before}chatcmpl-{ours}-{random}") == chat
    assert record_id_of(f"{before}chatcmpl-{ours}") == chat
    assert record_id_of(f"{ours}-{random}") == record_id_of(ours) == ours
    info = request_info_from_xargs(f"chatcmpl-{ours}-{random}", {"paceline_tenant": "t"})
    assert (info.request_id, info.recorded_as) == (f"chatcmpl-{ours}-{random}", ours)


@given(st.text())
def test_an_id_that_is_not_the_proxys_stays_as_it_is(engine_id: str) -> None:
    """Requests that came another way are recorded under the engine's own id."""
    assert record_id_of(engine_id) == engine_id
    assert request_info_from_xargs(engine_id, {"paceline_tenant": "t"}).recorded_as == engine_id


def test_different_sequences_never_share_a_name() -> None:
    """Prompts and replies of one request, and requests, have names of their own."""
    one, two = new_request_id(), new_request_id()
    names = [
        record_id(request, prompt=p, choice=c)
        for request in (one, two)
        for p in range(12)
        for c in range(12)
    ]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("xargs", "expected"),
    [
        (None, DraftLimits()),
        ({}, DraftLimits()),
        ({"paceline_speculation": "off", "draft_tokens": 9}, NO_DRAFTS),
        ({"paceline_draft_tokens": 4}, DraftLimits(max_tokens=4)),
        ({"paceline_draft_tokens": 4, "draft_tokens": 9}, DraftLimits(max_tokens=4)),
        ({"paceline_draft_tokens": 9, "draft_tokens": 0}, DraftLimits(max_tokens=0)),
        ({"paceline_draft_sources": "memory"}, DraftLimits(frozenset({"memory"}))),
        (
            {"paceline_draft_sources": "memory", "draft_sources": "model,memory"},
            DraftLimits(frozenset({"memory"})),
        ),
        (
            {"paceline_draft_sources": "memory", "draft_sources": "model"},
            DraftLimits(frozenset()),
        ),
        ({"draft_sources": ""}, DraftLimits(frozenset())),
        ({"paceline_draft_sources": "oracle"}, NO_DRAFTS),
        ({"draft_tokens": -1}, NO_DRAFTS),
        ({"draft_tokens": True}, NO_DRAFTS),
        ({"draft_sources": 3}, NO_DRAFTS),
    ],
)
def test_policy_and_client_narrow_drafts_together(
    xargs: dict[str, Any] | None, expected: DraftLimits
) -> None:
    """The fewer sources and tokens of the two; what cannot be understood has nothing drafted."""
    limits = draft_limits(xargs)
    assert limits == expected
    for source in ("memory", "model"):
        allowed = source in expected.sources
        most = 8 if expected.max_tokens is None else expected.max_tokens
        assert limits.most(source, 8) == (most if allowed else 0)


@pytest.mark.parametrize(
    "xargs", [None, {}, {"paceline_drafter": "other"}, {"paceline_drafter": 3}]
)
def test_a_groups_drafter_drafts_for_its_requests_alone(xargs: dict[str, Any] | None) -> None:
    """Memory drafts for the others; a shared drafter, which nobody private taught, for all."""
    assert draft_limits(xargs, drafter_group="team").sources == {"memory"}
    assert draft_limits(xargs, drafter_group="shared").sources == {"memory", "model"}
    own = {**(xargs or {}), "paceline_drafter": "team"}
    assert draft_limits(own, drafter_group="team").sources == {"memory", "model"}
    narrowed = {**own, "draft_sources": "memory"}
    assert draft_limits(narrowed, drafter_group="team").sources == {"memory"}
    assert draft_limits({"draft_sources": "model"}, drafter_group="team").sources == set()
