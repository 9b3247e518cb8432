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
    drafts: Sequence[Draft], *, base_tokens: float, base_seconds: float, token_seconds: float
) -> Choice:
    """The best of all numbers of likeliest nodes. O(n²)."""
    each = [chances_of(draft) for draft in drafts]
    expected = [sum(chances) for chances in each]
    if base_seconds <= 0 or token_seconds <= 0:
        kept = [len(draft) for draft in drafts]
        return Choice(kept, expected, 0.0, base_tokens + sum(expected))
    likeliest = sorted((chance for chances in each for chance in chances), reverse=True)
    totals = [
        (base_tokens + sum(likeliest[:n]), base_seconds + n * token_seconds)
        for n in range(len(likeliest) + 1)
    ]
    tokens, seconds = max(totals, key=lambda total: (total[0] / total[1], -total[1]))
    price = tokens / seconds * token_seconds
    return Choice([likelier(draft, price) for draft in drafts], expected, price, tokens)
