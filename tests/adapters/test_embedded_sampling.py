"""Drawing tokens: the target's distribution, fixed by seed and position."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from paceline.adapters.embedded.sampling import (
    NextDraws,
    SamplingParams,
    distribution,
    draw,
    exponentials,
    foresee,
    logprobs_of,
    verify,
)
from paceline.caches.tree import ROOT

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
    params = SamplingParams(temperature=temperature, top_p=top_p, seed=8)
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


def test_exponential_numbers_are_fixed_positive_and_of_mean_one() -> None:
    """Seed and position fix them, more of them begin with the same; never zero or infinite."""
    numbers = exponentials(-5, 2, 50_000)
    assert torch.equal(numbers[:10], exponentials(-5, 2, 10))
    assert not torch.equal(numbers[:10], exponentials(-5, 3, 10))
    assert bool(((numbers > 0) & (numbers < 37)).all())
    assert float(numbers.mean()) == pytest.approx(1.0, abs=0.02)
    assert float(numbers.var()) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("top_p", [0.02, 0.5, 0.9, 0.999])
def test_a_nucleus_found_in_parts_is_the_sorted_one(top_p: float) -> None:
    """Over a vocabulary larger than what is looked at first, flat enough to need all of it."""
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    params = SamplingParams(temperature=3.0, top_p=top_p)
    probs, order = torch.softmax(logits.double() / 3.0, -1).sort(descending=True)
    num_kept = int((probs.cumsum(0) < top_p).sum()) + 1
    kept = distribution(logits, params)
    assert sorted(kept.nonzero().flatten().tolist()) == sorted(order[:num_kept].tolist())
    assert torch.equal(kept[order[:num_kept]], probs[:num_kept])


@pytest.mark.parametrize(
    "params",
    [SamplingParams(temperature=0), SamplingParams(seed=5), SamplingParams(seed=6, top_p=0.6)],
)
def test_what_the_target_would_say_is_foreseen(params: SamplingParams) -> None:
    """A drafter of the same opinion names the target's token first, whatever the place's depth."""
    logits = torch.stack([LOGITS.roll(shift) for shift in range(5)])
    depths = [0, 1, 1, 2, 7]
    tokens, guesses = foresee(logits, NextDraws(params, 30), depths, 3)
    assert tokens[:, 0].tolist() == [
        draw(row, params, 30 + depth) for row, depth in zip(logits, depths, strict=True)
    ]
    assert bool((guesses.diff(dim=-1) <= 0).all())
    assert bool((guesses.sum(dim=-1) <= 1 + 1e-6).all())


@pytest.mark.parametrize(
    "params",
    [SamplingParams(temperature=0), SamplingParams(seed=5), SamplingParams(seed=6, top_p=0.6)],
)
def test_a_trimmed_head_foresees_as_a_whole_one_that_rules_the_others_out(
    params: SamplingParams,
) -> None:
    """The same tokens and guesses, in whatever order its rows are."""
    known = torch.tensor([4, 1, 2, 0])
    logits = torch.stack([LOGITS.roll(shift) for shift in range(5)])
    whole = torch.full_like(logits, -torch.inf)
    whole[:, known] = logits[:, known]
    draws, depths = NextDraws(params, 30), [0, 1, 1, 2, 7]
    tokens, guesses = foresee(logits[:, known], draws, depths, 3, token_ids=known)
    expected, of_whole = foresee(whole, draws, depths, 3)
    torch.testing.assert_close(guesses, of_whole)
    is_possible = guesses > 0  # beyond top_p all are alike
    assert torch.equal(tokens[is_possible], expected[is_possible])
    assert bool(is_possible[:, 0].all())


def test_different_opinions_agree_as_often_as_promised() -> None:
    """The winners of two races: equal oftener than the drafter's likeliest token is right."""
    other = LOGITS.flip(0) * 0.3
    target, drafter = (torch.softmax(row.double(), -1) for row in (LOGITS * 0.6, other))
    distance = float((target - drafter).abs().sum() / 2)
    num_equal, number = 0, 5_000
    for seed in range(number):
        params = SamplingParams(seed=seed)
        tokens, _ = foresee(other[None], NextDraws(params, 0), [0], 1)
        num_equal += int(tokens[0, 0]) == draw(LOGITS * 0.6, params, 0)
    assert num_equal / number > (1 - distance) / (1 + distance)
    assert num_equal / number > float(target[drafter.argmax()])


def test_temperature_zero_takes_the_likeliest() -> None:
    """Greedy ignores seed and position."""
    assert {draw(LOGITS, SamplingParams(temperature=0, seed=n), n) for n in range(20)} == {4}


def test_a_tiny_top_p_still_leaves_the_likeliest() -> None:
    """The likeliest token is always among those drawn from."""
    params = SamplingParams(top_p=1e-9)
    assert {draw(LOGITS, params, n) for n in range(20)} == {4}


TREE: Any = {"token_ids": [4, 1, 0, 4, 2], "parents": [ROOT, ROOT, 0, 0, 1]}
"""Two branches, of which the first forks again."""


def test_a_verified_tree_leaves_the_distribution_of_two_tokens_unchanged() -> None:
    """Pairs of tokens said behind a tree have the frequencies of pairs said without one."""
    logits = torch.stack([LOGITS.roll(shift) for shift in (0, 1, 2, 3, 4, 0)])
    shift_after = {4: logits[1], 1: logits[2]}
    unread = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0])  # what follows a token that was not drafted
    number = 50_000
    counts: Counter[tuple[int, int]] = Counter()
    num_accepted = 0
    for seed in range(number):
        params = SamplingParams(seed=seed)
        said, path = verify(logits, **TREE, params=params, position=0)
        num_accepted += len(path)
        if len(said) == 1:
            said.append(draw(unread, params, 1))
        counts[said[0], said[1]] += 1
    first = torch.softmax(LOGITS.double(), -1)
    expected = {
        (a, b): number * float(first[a] * torch.softmax(shift_after.get(a, unread).double(), -1)[b])
        for a in range(5)
        for b in range(5)
    }
    statistic = sum((counts[pair] - n) ** 2 / n for pair, n in expected.items())
    assert statistic < 51.18  # the upper 0.1 % point for 24 degrees of freedom
    assert num_accepted > number / 2


def test_a_tree_says_what_would_have_been_said_without_it() -> None:
    """With a seed the tokens are the ones drawn position by position, and the path holds them."""
    logits = torch.stack([LOGITS.roll(shift) for shift in range(6)])
    for seed in range(200):
        params = SamplingParams(temperature=1.5, seed=seed)
        said, path = verify(logits, **TREE, params=params, position=9)
        assert [TREE["token_ids"][node] for node in path] == said[:-1]
        rows = [0, *(node + 1 for node in path)]
        assert said == [draw(logits[row], params, 9 + i) for i, row in enumerate(rows)]


def test_log_probabilities_are_those_before_temperature() -> None:
    """The token's own and the likeliest alternatives, normalised over the vocabulary."""
    own = logprobs_of(torch.stack([LOGITS, LOGITS]), [1, 4], 2)[0]
    none = logprobs_of(LOGITS[None], [3], 0)[0]
    expected = torch.log_softmax(LOGITS.double(), -1)
    assert own.logprob == pytest.approx(float(expected[1]))
    assert [token_id for token_id, _ in own.top] == [4, 0]
    assert own.top[0][1] == pytest.approx(float(expected[4]))
    assert none.top == ()
