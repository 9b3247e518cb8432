"""Whether drawn tokens have the frequencies that a model's probabilities promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

RANK_BORDERS: Final = (1, 2, 3, 5, 9, 33)
"""Ranks are counted together from each of these to the next."""
LEAST_EXPECTED: Final = 5.0
SMALLEST_VARIANCE: Final = 1e-9
"""Part of the greatest: directions in which less varies are what the others determine."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How well counts fit what was expected.

    Attributes:
        statistic: chi-square.
        degrees: of freedom.
        p_value: probability of a statistic as large, if the tokens were drawn as promised.
    """

    statistic: float
    degrees: int
    p_value: float


class Frequencies:
    """Counts of drawn tokens by category, and what the model promised.

    A token's category may depend on all that was said before it, and so may the promise: the
    differences form a martingale, whose variance is the sum of the steps' variances. So tokens of
    one long reply count as well as those of many short ones.

    Args:
        num_categories: at least 2; every token belongs to one.
    """

    def __init__(self, num_categories: int) -> None:
        self.num_tokens = 0
        self._observed = torch.zeros(num_categories, dtype=torch.float64)
        self._expected = torch.zeros(num_categories, dtype=torch.float64)
        self._covariance = torch.zeros(num_categories, num_categories, dtype=torch.float64)

    def add(self, probs: torch.Tensor, drawn: torch.Tensor) -> None:
        """Count tokens.

        Args:
            probs: float64 (tokens, categories), the promise: rows sum to one.
            drawn: int64 (tokens,), the category of each drawn token.
        """
        self.num_tokens += len(drawn)
        self._observed += torch.bincount(drawn, minlength=len(self._observed))
        self._expected += probs.sum(dim=0)
        self._covariance += torch.diag(probs.sum(dim=0)) - probs.T @ probs

    def fit(self) -> Fit:
        """The chi-square test; categories expected fewer than five times count as one.

        O(categories cubed).
        """
        rare = self._expected < LEAST_EXPECTED
        index = torch.cumsum(~rare, 0) - 1
        index[rare] = int((~rare).sum())
        merge = torch.zeros(int(index.max()) + 1, len(index), dtype=torch.float64)
        merge[index, torch.arange(len(index))] = 1.0
        difference = merge @ (self._observed - self._expected)
        values, vectors = torch.linalg.eigh(merge @ self._covariance @ merge.T)
        varies = values > SMALLEST_VARIANCE * values.max()
        along = (vectors.T @ difference)[varies]
        statistic = float((along.square() / values[varies]).sum())
        degrees = int(varies.sum())
        half = torch.tensor([degrees, statistic], dtype=torch.float64) / 2
        return Fit(statistic, degrees, float(torch.special.gammaincc(half[0], half[1])))


def by_rank(
    probs: torch.Tensor, drawn: Sequence[int], borders: Sequence[int] = RANK_BORDERS
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `Frequencies.add` takes, with the rank of a token in its distribution as category.

    Args:
        probs: float64 (tokens, vocabulary).
        drawn: token ids.
        borders: first rank of each category, from 1 on.

    Returns:
        (float64 (tokens, categories), int64 (tokens,)). O(tokens * vocabulary).
    """
    ordered, token_ids = probs.sort(dim=-1, descending=True)
    category = torch.zeros(probs.shape[-1], dtype=torch.long)
    for border in borders[1:]:
        category[border - 1 :] += 1
    promised = torch.zeros(len(probs), len(borders), dtype=torch.float64)
    promised.index_add_(1, category, ordered)
    ranks = (token_ids == torch.as_tensor(drawn)[:, None]).long().argmax(dim=-1)
    return promised, category[ranks]


def by_token(
    probs: torch.Tensor, drawn: Sequence[int], named: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `Frequencies.add` takes, with each of the `named` tokens as category, and all others.

    O(tokens * vocabulary).
    """
    of_token = torch.full((probs.shape[-1],), len(named))
    of_token[torch.as_tensor(named)] = torch.arange(len(named))
    promised = torch.zeros(len(probs), len(named) + 1, dtype=torch.float64)
    promised.index_add_(1, of_token, probs)
    return promised, of_token[torch.as_tensor(drawn)]
