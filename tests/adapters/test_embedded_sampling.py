"""Drawing tokens: the target's distribution, fixed by seed and position."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from paceline.adapters.embedded.sampling import SamplingParams, draw, uniform

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, 3.0])
CHI_SQUARE_99_9 = {4: 18.47, 1: 10.83}
"""Upper 0.1 % points of the chi-square distribution, by degrees of freedom."""


def expected(params: SamplingParams) -> list[float]:
    """The filtered distribution, computed the plain way."""
    probs = torch.softmax(LOGITS.double() / params.temperature, dim=-1).tolist()
    kept, total = [0.0] * len(probs), 0.0
    for token in sorted(range(len(probs)), key=lambda t: -probs[t]):
        kept[token] = probs[token]
        total += probs[token]
        if total >= params.top_p:
            break
    return [p / sum(kept) for p in kept]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.7, 1.0), (1.0, 0.8)])
def test_draws_follow_the_filtered_distribution(temperature: float, top_p: float) -> None:
    """Over many positions the frequencies fit the distribution (chi-square, 0.1 %)."""
    params = SamplingParams(temperature=temperature, top_p=top_p, seed=7)
    number = 20_000
    counts = Counter(draw(LOGITS, params, position) for position in range(number))
    probs = expected(params)
    assert set(counts) <= {token for token, p in enumerate(probs) if p > 0}
    possible = [(token, p) for token, p in enumerate(probs) if p > 0]
    statistic = sum((counts[t] - number * p) ** 2 / (number * p) for t, p in possible)
    assert statistic < CHI_SQUARE_99_9[len(possible) - 1]


def test_seed_and_position_fix_the_draw() -> None:
    """The same seed and position give the same token whatever was drawn before."""
    params = SamplingParams(seed=3)
    forward = [draw(LOGITS, params, n) for n in range(50)]
    backward = [draw(LOGITS, params, n) for n in reversed(range(50))]
    assert forward == backward[::-1]
    assert forward != [draw(LOGITS, SamplingParams(seed=4), n) for n in range(50)]
    assert all(0 <= uniform(-1, n) < 1 for n in range(1000))


def test_temperature_zero_takes_the_likeliest() -> None:
    """Greedy ignores seed and position."""
    assert {draw(LOGITS, SamplingParams(temperature=0, seed=n), n) for n in range(20)} == {4}


def test_a_tiny_top_p_still_leaves_the_likeliest() -> None:
    """The likeliest token is always among those drawn from."""
    params = SamplingParams(top_p=1e-9)
    assert {draw(LOGITS, params, n) for n in range(20)} == {4}
