"""What is worth its time in a round, against trying everything."""

from __future__ import annotations

from itertools import accumulate, combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.policies.draft_budget import least_chance, worth_their_time

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


@given(
    st.lists(st.floats(0.0, 1.0), max_size=12),
    st.floats(0.5, 10.0),
    st.floats(0.1, 5.0),
    st.floats(0.001, 1.0),
)
def test_no_other_number_of_tokens_yields_more(
    chances: list[float], tokens: float, seconds: float, each: float
) -> None:
    """Verifying what is likelier than the least chance has the highest rate of all budgets."""
    price = least_chance(chances, base_tokens=tokens, base_seconds=seconds, token_seconds=each)
    ordered = sorted(chances, reverse=True)
    rates = [
        (tokens + total) / (seconds + each * n)
        for n, total in enumerate(accumulate(ordered, initial=0.0))
    ]
    num_kept = sum(chance > price for chance in chances)
    assert rates[num_kept] == pytest.approx(max(rates), rel=1e-9)


def test_alone_on_a_small_cpu_likely_drafts_are_whole() -> None:
    """Where verifying eight tokens takes 1.4 times one, eight of nine in ten are all verified."""
    chances = [0.9**n for n in range(1, 9)]
    token = 0.4 / 7
    alone = least_chance(chances, base_tokens=1.0, base_seconds=1.0, token_seconds=token)
    assert alone < chances[-1]
    unsure = [0.5**n for n in range(1, 9)]
    price = least_chance(unsure, base_tokens=1.0, base_seconds=1.0, token_seconds=token)
    assert 2 <= sum(chance > price for chance in unsure) <= 4


def test_without_a_price_nothing_is_too_unlikely() -> None:
    """A token that costs nothing, or a round of unknown length, cuts no draft."""
    for seconds, each in ((1.0, 0.0), (0.0, 1.0)):
        found = least_chance([0.01], base_tokens=1.0, base_seconds=seconds, token_seconds=each)
        assert found == 0.0
