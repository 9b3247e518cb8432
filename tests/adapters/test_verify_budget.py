"""Which drafted tokens of a batch are verified."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.adapters.verify_budget import VerifyBudget
from paceline.caches import TokenTree, TreeBatch

FIXED, REQUEST, TOKEN = 0.02, 0.001, 0.0015
"""Seconds of a round."""


def make_budget(**settings: bool) -> VerifyBudget:
    """Knows what rounds take."""
    budget = VerifyBudget(**settings)
    for i in range(200):
        requests, tokens = 1 + i % 8, 1 + i % 8 + i * 7 % 20
        seconds = FIXED + REQUEST * requests + TOKEN * tokens
        budget.target.learn(requests, tokens, seconds)
    return budget


def chains(*drafts: list[float]) -> TreeBatch:
    """Chains whose tokens have these chances, those before them included."""
    return TreeBatch.of([
        TokenTree.chain(
            range(len(draft)),
            prob=[a / b for a, b in zip(draft, [1.0, *draft], strict=False)],
        )
        for draft in drafts
    ])  # fmt: skip


def rate(drafts: list[list[float]], kept: list[int]) -> float:
    """Tokens a second, if of each draft that many are verified."""
    gained = sum(sum(draft[:num]) for draft, num in zip(drafts, kept, strict=True))
    num_tokens = len(drafts) + sum(kept)
    return (len(drafts) + gained) / (FIXED + REQUEST * len(drafts) + TOKEN * num_tokens)


drafts_of_a_batch = st.lists(
    st.lists(st.floats(0.05, 1.0), max_size=4).map(lambda ps: np.cumprod(ps).tolist()),
    min_size=1,
    max_size=4,
)


@given(drafts_of_a_batch)
def test_nothing_else_gives_more_tokens_a_second(drafts: list[list[float]]) -> None:
    """Of all ways to cut the drafts, as far as costs are known."""
    budget = make_budget()
    budget.begin(len(drafts))
    kept = budget.cut(chains(*drafts)).tolist()
    grids = np.meshgrid(*(range(len(draft) + 1) for draft in drafts))
    every = np.stack(grids, -1).reshape(-1, len(drafts)).tolist()
    best = max(rate(drafts, choice) for choice in every)
    assert rate(drafts, kept) == pytest.approx(best, rel=0.01)
    assert budget.num_cut == sum(map(len, drafts)) - sum(kept)


def test_the_outlook_is_the_round_that_is_worth_it() -> None:
    """Tokens expected and seconds of the round, as it will be cut."""
    budget = make_budget()
    budget.begin(3)
    drafts = [[0.9, 0.8], [0.3, 0.01], []]
    outlook = budget.outlook(chains(*drafts))
    kept = budget.cut(chains(*drafts)).tolist()
    assert kept == [2, 1, 0]
    assert outlook.tokens == pytest.approx(3 + 0.9 + 0.8 + 0.3)
    assert outlook.tokens / outlook.seconds == pytest.approx(rate(drafts, kept), rel=0.01)
    assert outlook.expected.tolist() == pytest.approx([1.7, 0.31, 0.0])


def test_drafting_that_took_long_makes_tokens_cheaper() -> None:
    """The dearer a round is already, the less likely a token may be."""
    budget = make_budget()
    budget.begin(2)
    drafts = chains([0.5, 0.2, 0.1, 0.05], [])
    short = budget.cut(drafts).tolist()
    long = budget.cut(drafts, drafting_seconds=1.0).tolist()
    assert short[0] < long[0] == 4
    assert budget.num_worth(drafts).tolist() == long


def test_before_costs_are_known_nothing_is_cut() -> None:
    """Nor where all is to be drafted, whatever it costs."""
    unsure = chains([0.5, 0.01], [0.02])
    for budget in (VerifyBudget(), make_budget(always_draft=True)):
        budget.begin(2)
        assert budget.cut(unsure).tolist() == [2, 1]
        assert budget.num_cut == 0
    assert VerifyBudget().outlook(unsure).seconds == 0.0
