"""How often drafts made from a drafter's probabilities are accepted, by how they are verified.

`likeliest` drafts the drafter's k likeliest tokens; verification without probabilities accepts with
the target's probability of them. `race` has target and drafter run one exponential race
(`paceline.adapters.embedded.sampling`): the target's token is accepted if it is among the drafter's
first k. `rejection` samples k different tokens from the drafter and accepts them one after the
other by recursive rejection (SpecInfer, arXiv 2305.09781; without replacement: Jeon et al., arXiv
2402.14160); for one token that is 1 - d, d the total variation distance: the most any way can get.
All three leave the target's distribution as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

METHODS: Final = ("likeliest", "race", "rejection")


def acceptance(
    target: torch.Tensor,
    drafter: torch.Tensor,
    widths: Sequence[int],
    *,
    num_draws: int,
    generator: torch.Generator,
) -> dict[tuple[str, int], torch.Tensor]:
    """Probability that one of k drafted tokens is accepted after each prefix.

    Args:
        target: float64 (prefixes, vocabulary), rows sum to one.
        drafter: the same of the drafter.
        widths: the k to look at.
        num_draws: random numbers that `race` and `rejection` are averaged over.
        generator: where they come from.

    Returns:
        For (method, k) float64 (prefixes,). O(prefixes * vocabulary * draws * largest k).
    """
    widest = max(widths)
    likeliest = target.gather(1, drafter.topk(widest, dim=-1).indices).cumsum(-1)
    races = torch.zeros(len(target), widest, dtype=torch.float64)
    rejections = torch.zeros_like(races)
    for _ in range(num_draws):
        races += _race(target, drafter, widest, generator) / num_draws
        rejections += _rejection(target, drafter, widest, generator) / num_draws
    by_method = dict(zip(METHODS, (likeliest, races, rejections), strict=True))
    return {(name, k): values[:, k - 1] for name, values in by_method.items() for k in widths}


def _race(
    target: torch.Tensor, drafter: torch.Tensor, widest: int, generator: torch.Generator
) -> torch.Tensor:
    """Whether the target's winner is among the drafter's first 1, 2, …, (prefixes, widest)."""
    numbers = torch.empty_like(target).exponential_(generator=generator)
    won = (target / numbers).argmax(dim=-1)
    first = (drafter / numbers).topk(widest, dim=-1).indices
    return (first == won[:, None]).double().cumsum(-1)


def _rejection(
    target: torch.Tensor, drafter: torch.Tensor, widest: int, generator: torch.Generator
) -> torch.Tensor:
    """Probability that one of the first 1, 2, … drawn tokens is accepted, (prefixes, widest)."""
    wanted, left = target.clone(), drafter.clone()
    rejected = torch.ones(len(target), 1, dtype=torch.float64)
    accepted = []
    for _ in range(widest):
        tokens = torch.multinomial(left, 1, generator=generator)
        ratio = wanted.gather(1, tokens) / left.gather(1, tokens)
        rejected = rejected * (1.0 - ratio.clamp(max=1.0))
        accepted.append(1.0 - rejected)
        wanted = _normalised((wanted - left).clamp(min=0.0))
        left = _normalised(left.scatter(1, tokens, 0.0))
    return torch.cat(accepted, dim=1)


def _normalised(weights: torch.Tensor) -> torch.Tensor:
    """Rows that sum to one; a row of zeros, which nothing is drawn from any more, evenly."""
    sums = weights.sum(dim=-1, keepdim=True)
    even = torch.full_like(weights, 1.0 / weights.shape[-1])
    return torch.where(sums > 0, weights / sums.clamp(min=1e-300), even)
