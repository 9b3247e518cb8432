"""The choice of drafted nodes for a round by trying every price, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from paceline.caches.tree import ROOT

Draft = Sequence[tuple[int, float]]
"""Parent and probability of each node."""


class Choice(NamedTuple):
    """As `choose_nodes` returns it."""

    num_kept: list[int]
    expected: list[float]
    price: float
    tokens: float


def chances_of(draft: Draft) -> list[float]:
    """That each node and all before it are accepted."""
    chances: list[float] = []
    for parent, prob in draft:
        chances.append(prob if parent == ROOT else prob * chances[parent])
    return chances


def likelier(draft: Draft, price: float) -> int:
    """First nodes of a draft that are all likelier than that."""
    chances = chances_of(draft)
    return next((n for n, chance in enumerate(chances) if chance <= price), len(chances))


def choose(
    drafts: Sequence[Draft],
    *,
    base_tokens: float,
    seconds: Sequence[float],
    token_seconds: float,
) -> Choice:
    """The best of all numbers of likeliest nodes, of equal ones the most. O(n²)."""
    each = [chances_of(draft) for draft in drafts]
    expected = [sum(chances) for chances in each]
    if seconds[0] <= 0:
        kept = [len(draft) for draft in drafts]
        return Choice(kept, expected, 0.0, base_tokens + sum(expected))

    def seconds_with(num: int) -> float:
        beyond = max(0, num - len(seconds) + 1)
        return seconds[num - beyond] + beyond * token_seconds

    nodes = [(-chance, i, n) for i, draft in enumerate(each) for n, chance in enumerate(draft)]
    nodes.sort()
    totals = [
        base_tokens - sum(chance for chance, _, _ in nodes[:num]) for num in range(len(nodes) + 1)
    ]
    best = max(range(len(totals)), key=lambda num: (totals[num] / seconds_with(num), num))
    low, high = max(0, best - 3), best + 3
    slope = (seconds_with(high) - seconds_with(low)) / (high - low)
    price = max(0.0, totals[best] / seconds_with(best) * slope)
    chosen = {(i, n) for _, i, n in nodes[:best]}
    kept = [
        next((n for n in range(len(draft)) if (i, n) not in chosen), len(draft))
        for i, draft in enumerate(drafts)
    ]
    return Choice(kept, expected, price, totals[best])
