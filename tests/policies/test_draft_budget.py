"""What is worth its time in a round, against trying everything."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.policies.draft_budget import worth_their_time

amounts = st.floats(0.0, 5.0)


def best_rate(gains: list[float], seconds: list[float], **base: Any) -> float:
    """Of all subsets."""
    return max(
        rate(gains, seconds, list(chosen), **base)
        for size in range(len(gains) + 1)
        for chosen in combinations(range(len(gains)), size)
    )


def rate(
    gains: list[float],
    seconds: list[float],
    chosen: list[int],
    *,
    fixed_seconds: float,
    base_tokens: float,
    base_seconds: float,
) -> float:
    tokens = base_tokens + sum(gains[i] for i in chosen)
    time = base_seconds + sum(seconds[i] for i in chosen) + fixed_seconds * bool(chosen)
    return tokens / time


@given(
    st.lists(st.tuples(amounts, amounts), max_size=7),
    amounts,
    st.floats(0.1, 5.0),
    st.floats(0.1, 5.0),
)
def test_no_other_choice_yields_more_tokens_a_second(
    additions: list[tuple[float, float]], fixed: float, tokens: float, time: float
) -> None:
    """Of all subsets the chosen one has the highest rate."""
    gains, seconds = [g for g, _ in additions], [s for _, s in additions]
    base = {"fixed_seconds": fixed, "base_tokens": tokens, "base_seconds": time}
    chosen = worth_their_time(gains, seconds, **base)
    assert chosen == sorted(set(chosen))
    found = rate(gains, seconds, chosen, **base)
    assert found == pytest.approx(best_rate(gains, seconds, **base), rel=1e-6)


def test_what_costs_is_shared_by_all_who_are_chosen() -> None:
    """A pass that no request is worth alone is run where three are worth it together."""
    base = {"fixed_seconds": 1.0, "base_tokens": 4.0, "base_seconds": 4.0}
    assert worth_their_time([0.6], [0.1], **base) == []
    assert worth_their_time([0.6, 0.6, 0.0, 0.6], [0.1] * 4, **base) == [0, 1, 3]


def test_while_times_are_unknown_everything_that_brings_something_is_chosen() -> None:
    """Nothing can be too dear before anything is known."""
    base = {"fixed_seconds": 9.0, "base_tokens": 1.0, "base_seconds": 0.0}
    assert worth_their_time([0.1, 0.0, 0.2], [1.0] * 3, **base) == [0, 2]
    assert worth_their_time([], [], **base) == []
