"""When an update pays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paceline.online.worthwhile import Decision, Economics, ExpectedGain, decide


def decided(**changes: float) -> Decision:
    told = {
        "accepted_length": 1.0,
        "expected_gain": 0.1,
        "drift": 0.0,
        "busy_share": 0.5,
        "cycle_seconds": 300.0,
    }
    return decide(Economics(), **{**told, **changes})


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
    """Drift begins a cycle where cycles have brought nothing of late."""
    found = decided(expected_gain=0.0, drift=0.5)
    assert found.begins
    assert "changed" in found.reason
    assert found.has_changed
    assert not decided(drift=0.2).has_changed, "of 1.2 accepted tokens a sixth"
    assert decided(drift=0.3).has_changed
    assert not decided(accepted_length=0.0, drift=0.0).has_changed


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
