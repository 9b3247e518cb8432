"""Discounted LinUCB: rewards as a line in the logarithms of load and length."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from paceline.errors import ConfigError
from paceline.policies.bandits.arms import Arm
from paceline.policies.bandits.bandit import DISCOUNT, Bandit, Seen, best
from paceline.policies.bandits.context import (
    LEAST_CONTEXT,
    MOST_CONTEXT,
    MOST_IN_BATCH,
    PolicyContext,
)
from paceline.policies.bandits.evidence import Cell
from paceline.policies.bandits.state import TableName

NUM_FEATURES: Final = 3
NUM_PRODUCTS: Final = NUM_FEATURES * NUM_FEATURES
PRIOR_WEIGHT: Final = 0.5
PRIOR_REWARD: Final = 1.0


class DiscountedLinUCB(Bandit):
    """LinUCB (Li, Chu, Langford, Schapire, arXiv 1003.0146), discounted as in D-LinUCB.

    (Russac, Vernade, Cappé, arXiv 1909.09146.) Each arm has a line of its own over 1, the logarithm
    of the batch bucket and that of the context bucket, for each workload of a key: what one load
    shows is carried to others. A row is the weight, the products of features and the products of
    features and reward.

    Args:
        arms: see `Bandit`.
        rng: see `Bandit`; it draws nothing.
        discount: see `Bandit`.
        drafter: see `Bandit`.
        explore: how far beyond the line it looks, in rewards; at least 0.

    Raises:
        ConfigError: a setting is outside its range.
    """

    kind = "linear"
    width = 1 + NUM_PRODUCTS + NUM_FEATURES

    def __init__(
        self,
        arms: Iterable[Arm],
        *,
        rng: random.Random,
        discount: float = DISCOUNT,
        drafter: str = "",
        explore: float = 0.3,
    ) -> None:
        super().__init__(arms, rng=rng, discount=discount, drafter=drafter)
        if not 0.0 <= explore < math.inf:
            raise ConfigError(f"explore is {explore}; give a number of at least 0")
        self._explore = explore
        self._prior = PRIOR_WEIGHT * np.eye(NUM_FEATURES)

    def _levels(self, context: PolicyContext) -> tuple[TableName, ...]:
        return ((context.workload, 0, 0),)

    def _learn(
        self, context: PolicyContext, cell: Cell, arm: int, seen: Seen, aside: Mapping[int, Seen]
    ) -> None:
        features = _features(context.batch_bucket, context.context_bucket)
        for number, (reward, weight) in ({arm: seen} | dict(aside)).items():
            row = [weight]
            row += [weight * a * b for a in features for b in features]
            row += [weight * a * reward for a in features]
            cell.tables[0].add(number, row)

    def _chosen(self, cell: Cell, staying: Sequence[int], margin: float) -> int:
        _, batch, length = cell.name
        features = np.array(_features(batch, length))
        means, widths = self._bounds(cell, features)
        scores: list[float] = (means + self._explore * widths).tolist()
        return best(scores, staying, margin)

    def _bounds(
        self, cell: Cell, features: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean and its standard deviation, up to that of the rewards, of each arm."""
        table = cell.tables[0]
        rows = np.array([table.row(arm) for arm in range(len(self._arms))])
        products = rows[:, 1 : 1 + NUM_PRODUCTS].reshape(-1, NUM_FEATURES, NUM_FEATURES)
        rewarded = rows[:, 1 + NUM_PRODUCTS :].copy()
        rewarded[:, 0] += PRIOR_WEIGHT * PRIOR_REWARD
        seen = np.linalg.solve(products + self._prior, features)
        return (rewarded * seen).sum(axis=1), np.sqrt(np.maximum(seen @ features, 0.0))


def _features(batch: int, length: int) -> tuple[float, float, float]:
    """1, and the logarithms of both buckets from -1 to 1."""
    load = 2.0 * math.log2(max(batch, 1)) / math.log2(MOST_IN_BATCH) - 1.0
    above = math.log2(max(length, LEAST_CONTEXT) / LEAST_CONTEXT)
    return 1.0, load, 2.0 * above / math.log2(MOST_CONTEXT / LEAST_CONTEXT) - 1.0
