"""What a forward pass costs, learned from synthetic passes."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.policies.round_cost import (
    DISCOUNT,
    EAGER_PASSES,
    LEAST_PASSES,
    MOST_OUTLIERS,
    RIDGE_OF_ALL,
    SOLVE_INTERVAL,
    RoundCost,
)


def taught(
    *,
    num_passes: int = 200,
    noise: float = 0.0,
    fixed: float = 0.03,
    request: float = 0.002,
    token: float = 0.001,
    requests: tuple[int, int] = (1, 10),
    cost: RoundCost | None = None,
) -> RoundCost:
    rng = random.Random(5)  # noqa: S311  fixed, for numbers that look like measured ones
    cost = RoundCost() if cost is None else cost
    for _ in range(num_passes):
        num_requests = rng.randint(*requests)
        num_tokens = num_requests + rng.randint(0, 6 * num_requests)
        seconds = fixed + request * num_requests + token * num_tokens
        cost.learn(num_requests, num_tokens, seconds * (1 + noise * rng.uniform(-1, 1)))
    return cost


def test_the_parts_of_a_pass_are_told_apart() -> None:
    """What a pass, a request and a token take is learned from passes that differ in both."""
    cost = taught()
    assert cost.fixed_seconds == pytest.approx(0.03, rel=0.02)
    assert cost.request_seconds == pytest.approx(0.002, rel=0.05)
    assert cost.token_seconds == pytest.approx(0.001, rel=0.02)
    assert cost.seconds(4, 20) == pytest.approx(0.03 + 0.008 + 0.02, rel=0.01)
    assert "30.0" in repr(cost)


def test_noise_averages_out() -> None:
    """With a fifth of noise on every pass the price of a token is right to a quarter."""
    cost = taught(noise=0.2, num_passes=400)
    assert cost.token_seconds == pytest.approx(0.001, rel=0.25)
    assert cost.seconds(5, 25) == pytest.approx(0.065, rel=0.1)


def test_nothing_costs_anything_before_enough_was_seen() -> None:
    """The first pass is not learned from, and a few are not enough."""
    cost = RoundCost()
    cost.learn(1, 1, 50.0)
    for _ in range(LEAST_PASSES):
        cost.learn(1, 2, 1.0)
        assert not cost.is_known
        assert cost.seconds(1, 2) == cost.token_seconds == cost.request_seconds == 0.0
    cost.learn(1, 2, 1.0)
    assert cost.is_known
    assert cost.seconds(1, 2) == pytest.approx(1.0)


def test_where_tokens_do_not_vary_they_cost_nothing() -> None:
    """Passes of one size do not tell what another size takes, so drafts are free until they do."""
    cost = taught(requests=(4, 4))
    assert cost.token_seconds > 0.0009
    for _ in range(1000):
        cost.learn(4, 4, 0.042)
    assert cost.token_seconds < 0.0001
    assert cost.seconds(4, 4) == pytest.approx(0.042)


def test_no_part_is_negative() -> None:
    """Passes that are shorter the more they read make nothing cost less than nothing."""
    cost = RoundCost()
    for i in range(100):
        cost.learn(1 + i % 3, 10 + i % 7, 1.0 - 0.05 * (i % 7))
    assert cost.token_seconds == 0.0
    assert cost.request_seconds >= 0.0
    assert cost.seconds(0, 1000) > 0.0
    more = taught(token=0.0)
    assert more.token_seconds == pytest.approx(0.0, abs=1e-4)


def test_a_pass_out_of_all_proportion_changes_nothing() -> None:
    """One that took twenty times as long is not learned from; so many in a row are believed."""
    cost = taught()
    before = repr(cost)
    for _ in range(MOST_OUTLIERS - 1):
        cost.learn(4, 12, 1.0)
    assert repr(cost) == before
    cost.learn(4, 12, 0.05)
    cost.learn(4, 12, 1.0)
    assert cost.seconds(4, 12) < 0.06
    taught(cost=cost, fixed=0.9, token=0.03)
    assert cost.token_seconds == pytest.approx(0.03, rel=0.05)


def test_the_recent_counts() -> None:
    """When a token comes to cost twice as much, two hundred passes later that is what is said."""
    cost = taught()
    taught(cost=cost, token=0.002)
    assert cost.token_seconds == pytest.approx(0.002, rel=0.05)


def test_a_context_is_told_apart_from_requests_and_tokens() -> None:
    """What is read anew of long contexts is not taken for the price of tokens."""
    rng = random.Random(8)  # noqa: S311  fixed, for numbers that look like measured ones
    cost = RoundCost()
    for _ in range(300):
        num_requests = rng.randint(1, 10)
        num_tokens = num_requests + rng.randint(0, 40)
        context = num_requests * rng.uniform(100, 4000)
        seconds = 0.02 + 0.001 * num_requests + 0.0005 * num_tokens + 2e-6 * context
        cost.learn(num_requests, num_tokens, seconds, num_context=context)
    assert cost.context_seconds == pytest.approx(2e-6, rel=0.02)
    assert cost.token_seconds == pytest.approx(0.0005, rel=0.05)
    assert cost.request_seconds == pytest.approx(0.001, rel=0.1)
    assert cost.seconds(3, 9, 6000) == pytest.approx(0.02 + 0.003 + 0.0045 + 0.012, rel=0.02)


def taught_with_prompts(num_passes: int, longest: int, noise: float = 0.0) -> RoundCost:
    """32 requests are answered in each pass, and a prompt or two are read."""
    rng = random.Random(3)  # noqa: S311  fixed, for numbers that look like measured ones
    cost = RoundCost()
    for _ in range(num_passes):
        num_tokens = 32 + rng.randint(0, 60)
        prompt = rng.randint(1, longest)
        seconds = 0.1 + 0.002 * num_tokens + 0.003 * prompt
        cost.learn(32, num_tokens, seconds * (1 + noise * rng.uniform(-1, 1)), num_prompt=prompt)
    return cost


def test_prompts_that_are_read_beside_answers_have_a_part_of_their_own() -> None:
    """What tokens take is told of passes that all read prompts too."""
    cost = taught_with_prompts(100, 300)
    assert cost.token_seconds == pytest.approx(0.002, rel=0.02)
    assert cost.prompt_seconds == pytest.approx(0.003, rel=0.02)
    assert cost.seconds(32, 50) == pytest.approx(0.2, rel=0.02)
    assert cost.seconds(32, 50, num_prompt=100) == pytest.approx(0.5, rel=0.02)


def test_long_prompts_drown_little_of_what_tokens_take() -> None:
    """A pass counts for the less, the more of it is prompt; noise grows with its time."""
    cost = taught_with_prompts(800, 2000, noise=0.05)
    assert cost.token_seconds == pytest.approx(0.002, rel=0.6)
    assert cost.prompt_seconds == pytest.approx(0.003, rel=0.05)


def test_a_first_long_prompt_is_learned_from() -> None:
    """It takes out of all proportion, but nothing was known of prompts."""
    cost = taught()
    for num in range(1, 12):
        cost.learn(4, 8, 0.05 + 0.001 * 90 * num, num_prompt=90 * num)
    assert cost.prompt_seconds == pytest.approx(0.001, rel=0.05)
    assert cost.token_seconds == pytest.approx(0.001, rel=0.1)


def test_sums_are_those_of_all_passes_at_once() -> None:
    """Slopes are least squares over all passes, each counting for 0.98 of the next, to rounding."""
    rng = np.random.default_rng(4)
    cost = RoundCost()
    cost.learn(1, 1, 1.0)
    seen = []
    for number in range(1, 121):
        requests, context = int(rng.integers(1, 9)), float(rng.integers(100, 9000))
        tokens, prompt = requests + int(rng.integers(0, 40)), int(rng.integers(0, 500))
        seconds = 0.03 + 0.002 * requests + 0.001 * tokens + 1e-6 * context + 2e-4 * prompt
        seconds *= 1 + 0.1 * rng.uniform(-1, 1)
        cost.learn(requests, tokens, seconds, num_context=context, num_prompt=prompt)
        seen.append((requests, tokens, context, prompt, seconds, tokens / (tokens + prompt)))
        if number < EAGER_PASSES or number % SOLVE_INTERVAL:
            continue
        rows = np.array(seen)
        weights = rows[:, -1] * DISCOUNT ** np.arange(len(rows) - 1, -1, -1)
        off = rows[:, :-1] - np.average(rows[:, :-1], axis=0, weights=weights)
        moments = (off * weights[:, None]).T @ off
        slopes = np.linalg.solve(moments[:4, :4] + RIDGE_OF_ALL, moments[:4, 4])
        if slopes.min() >= 0:
            found = cost.request_seconds, cost.token_seconds, cost.context_seconds
            np.testing.assert_allclose((*found, cost.prompt_seconds), slopes, rtol=1e-6)


passes = st.lists(
    st.tuples(
        st.integers(1, 64),
        st.integers(1, 600),
        st.floats(0, 1e5),
        st.integers(0, 8192),
        st.floats(1e-5, 10.0),
    ),
    min_size=12,
    max_size=40,
)


@given(passes)
def test_whatever_is_seen_no_part_is_negative(
    seen: list[tuple[int, int, float, int, float]],
) -> None:
    """Nor infinite, and no pass takes no time."""
    cost = RoundCost()
    for requests, tokens, context, prompt, seconds in seen:
        cost.learn(requests, tokens, seconds, num_context=context, num_prompt=prompt)
    parts = cost.request_seconds, cost.token_seconds, cost.context_seconds, cost.prompt_seconds
    assert all(0 <= part < float("inf") for part in parts)
    assert not cost.is_known or 0 < cost.seconds(5, 50, 500.0) < float("inf")
