"""When an update pays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.online.worthwhile import (
    Decision,
    Economics,
    ExpectedGain,
    Loss,
    RecentLooks,
    decide,
)


def decided(*, loss: Loss | None = None, **changes: float) -> Decision:
    told = {
        "accepted_length": 1.0,
        "expected_gain": 0.1,
        "busy_share": 0.5,
        "cycle_seconds": 300.0,
    }
    return decide(Economics(), loss=loss or Loss(), **{**told, **changes})


def test_what_is_saved_is_compared_with_what_it_costs() -> None:
    """The arithmetic of one case, written out."""
    found = decided()
    assert found.gain_seconds == 0.5 * 3600 * 0.1 / 2.1
    assert found.cost_seconds == 0.01 * 300
    assert found.begins
    assert "earlier cycles" in found.reason


def test_nothing_begins_for_nothing() -> None:
    """No traffic, or no gain to be had: no cycle."""
    assert not decided(busy_share=0.0).begins
    assert not decided(expected_gain=0.0).begins
    assert not decided(cycle_seconds=50_000.0).begins


def test_what_was_lost_can_be_won_back() -> None:
    """A loss begins a cycle where cycles have brought nothing of late."""
    found = decided(expected_gain=0.0, loss=Loss(tokens=0.5, has_changed=True))
    assert found.begins
    assert "the traffic has changed" in found.reason
    again = decided(expected_gain=0.0, loss=Loss(tokens=0.5))
    assert again.begins
    assert "as many were accepted before" in again.reason
    assert "earlier cycles" in decided(loss=Loss(tokens=0.05)).reason


def test_a_change_is_told_once_and_what_it_took_is_kept() -> None:
    """Until as much is accepted again; the next change is told again."""
    looks = RecentLooks()
    found = [looks.look(3, its) for its in (2.0, 1.9, 1.7, 0.2, 0.2, 0.19, 0.4, 0.1)]
    assert [it.has_changed for it in found] == [
        *(False, False, False, True),
        *(False, False, False, True),
    ]
    usual = (2.0 + 1.9 + 1.7) / 3
    assert found[3].tokens == pytest.approx(usual - 0.2)
    assert found[5].tokens == pytest.approx(usual - 0.19)
    assert found[7].tokens == pytest.approx(usual - 0.1), "since the first of them"
    assert looks.look(3, 2.1) == Loss()
    assert looks.before is None


def test_another_version_is_compared_with_itself() -> None:
    """What the one before it accepted says nothing of it, nor does what its gate found."""
    looks = RecentLooks()
    for accepted in (2.0, 0.2):
        looks.look(3, accepted)
    assert looks.look(4, 1.2) == Loss()
    assert looks.look(4, 1.1).has_changed is False
    assert looks.look(4, 0.9).has_changed, "of 1.15 more than a fifth"


def test_little_is_no_change() -> None:
    """Of a drafter that is good for nothing a fifth is noise."""
    looks = RecentLooks()
    assert not any(looks.look(1, its).has_changed for its in (0.04, 0.01, 0.03, 0.0))
    assert looks.look(2, 0.06) == Loss()
    assert looks.look(2, 0.009).has_changed


@given(
    looks=st.lists(st.floats(0.0, 8.0), max_size=30),
    level=st.floats(0.01, 8.0),
    noise=st.lists(st.floats(-0.09, 0.09), min_size=1, max_size=30),
)
def test_what_stays_as_it_is_is_no_change(
    looks: list[float], level: float, noise: list[float]
) -> None:
    """Whatever came before: once what is new is usual, nothing within a tenth of it is told."""
    recent = RecentLooks()
    for accepted in looks:
        recent.look(1, accepted)
    for _ in range(60):
        recent.look(1, level)
    assert not any(recent.look(1, level * (1 + its)).has_changed for its in noise)


@given(gains=st.lists(st.floats(-1.0, 1.0), max_size=40))
def test_expectation_follows_what_cycles_bring(gains: list[float]) -> None:
    """It is never below zero, and after many alike it is what they brought."""
    expected = ExpectedGain(0.3)
    assert expected.value == 0.3
    for gain in gains:
        expected.learn(gain)
        assert expected.value >= 0.0
    for _ in range(60):
        expected.learn(0.05)
    assert abs(expected.value - 0.05) < 1e-3
