"""How what several layers say is put together."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.policies.rules import (
    BUILT_IN,
    DRAFT_SOURCES,
    FIELDS,
    SHARING,
    SIDE_CHANNEL,
    Layer,
    Rules,
    Speculation,
    resolve,
    said_in,
)

limits = st.integers(2, 100)
blocks = {
    "memory": st.fixed_dictionaries(
        {},
        optional={
            "session": st.booleans(),
            "workload": st.booleans(),
            "tenant": st.booleans(),
            "capacity": limits,
            "retention_seconds": st.floats(1.0, 1e6),
            "stored_tokens": limits,
        },
    ),
    "speculation": st.one_of(
        st.sampled_from(["auto", "off"]),
        st.fixed_dictionaries(
            {},
            optional={
                "sources": st.lists(st.sampled_from(DRAFT_SOURCES), max_size=3),
                "draft_tokens": st.integers(0, 128),
            },
        ),
    ),
}
said = st.fixed_dictionaries(
    {},
    optional={
        "sharing": st.sampled_from(SHARING),
        "record": st.booleans(),
        "learn": st.booleans(),
        "drafter": st.sampled_from(["shared", "retail", "bank"]),
        "priority": st.integers(0, 1000),
        "side_channel": st.sampled_from(SIDE_CHANNEL),
        "limits": st.fixed_dictionaries({}, optional={"concurrency": limits}),
        **blocks,
    },
).map(lambda values: said_in(Rules.model_validate(values)))


def layer(name: str, values: dict[str, Any]) -> Layer:
    return Layer(name, values)


ORDERS: dict[str, tuple[str, ...]] = {"sharing": SHARING, "side_channel": SIDE_CHANNEL}


def is_narrower(name: str, one: Any, other: Any) -> bool:
    """Whether nothing that `one` allows is refused by `other`."""
    if name in ORDERS:
        return ORDERS[name].index(one) <= ORDERS[name].index(other)
    if name == "speculation.sources":
        return set(one) <= set(other)
    if name == "drafter":
        return one != "shared" or other == "shared"
    if name == "priority":
        return bool(one >= other)
    if isinstance(one, bool):
        return not one or bool(other)
    return other is None or (one is not None and one <= other)


@given(said, said, said, said)
def test_each_layer_only_narrows(
    defaults: dict[str, Any],
    tenant: dict[str, Any],
    workload: dict[str, Any],
    request: dict[str, Any],
) -> None:
    """What holds is never wider than what any of them says, nor than what held before it."""
    configured = [layer("defaults", defaults), layer("tenant", tenant)]
    before = resolve(configured)
    resolved = resolve(configured, [layer("workload", workload)])
    final = resolved.narrowed([layer("request", request)])
    for name in FIELDS:
        assert is_narrower(name, resolved.values[name], before.values[name])
        assert is_narrower(name, final.values[name], resolved.values[name])
        for values in (defaults, tenant, workload, request):
            if name in values:
                assert is_narrower(name, final.values[name], values[name])
        if final.origins[name] == BUILT_IN:
            assert name not in defaults
            assert name not in tenant
    assert final.policy.record == final.values["record"]
    assert final.policy.memory.capacity == final.values["memory.capacity"]
    assert final.policy.speculation.sources == final.values["speculation.sources"]


@given(said, said)
def test_what_would_have_widened_is_named(outer: dict[str, Any], inner: dict[str, Any]) -> None:
    """Every value of the inner layer holds, or is listed as ignored."""
    resolved = resolve([layer("outer", outer), layer("inner", inner)])
    ignored = {(name, value) for where, name, value in resolved.ignored if where == "inner"}
    for name, value in inner.items():
        assert resolved.values[name] == value or (name, value) in ignored


def test_who_said_it_is_known() -> None:
    """The first that said a value, or the last that narrowed it."""
    resolved = resolve(
        [layer("defaults", {"priority": 3}), layer("tenant", {"priority": 3, "record": True})],
        [layer("workload", {"priority": 5, "learn": True})],
    )
    assert resolved.origins["priority"] == "workload"
    assert resolved.origins["record"] == "tenant"
    assert resolved.origins["learn"] == BUILT_IN
    assert resolved.values["learn"] is False
    assert list(resolved.ignored) == [("workload", "learn", True)]


def test_a_drafter_of_their_own_is_not_given_up() -> None:
    """A tenant names its own before its defaults', and never gets back to everybody's."""
    named = layer("defaults", {"drafter": "retail"})
    assert resolve([named]).policy.drafter == "retail"
    assert resolve([named, layer("tenant", {"drafter": "bank"})]).policy.drafter == "bank"
    back = resolve([named, layer("tenant", {"drafter": "shared"})])
    assert back.policy.drafter == "retail"
    assert list(back.ignored) == [("tenant", "drafter", "shared")]


@pytest.mark.parametrize(("learn", "record"), [(True, True), (True, False), (False, True)])
def test_what_is_not_recorded_is_not_learned_from(learn: bool, record: bool) -> None:
    """Both have to be allowed."""
    policy = resolve([layer("tenant", {"learn": learn, "record": record})]).policy
    assert policy.is_learned_from == (learn and record)


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ("auto", "auto"),
        (True, "auto"),
        ("off", "off"),
        (False, "off"),
        ({"draft_tokens": 0}, "off"),
        ({"sources": []}, "off"),
        ({"sources": ["model", "memory", "model"]}, "auto"),
        ({"sources": ["model"], "draft_tokens": 4}, "model; draft_tokens=4"),
        ({"draft_tokens": 4}, "memory,model; draft_tokens=4"),
    ],
)
def test_speculation_can_be_a_word(given_: object, expected: str) -> None:
    """Also the truth values that YAML makes of on and off."""
    assert str(Speculation.model_validate(given_)) == expected
