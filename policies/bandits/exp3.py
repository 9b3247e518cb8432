"""EXP3.S: for rewards that nobody promises anything about."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from paceline.errors import ConfigError
from paceline.policies.bandits.arms import Arm
from paceline.policies.bandits.bandit import Bandit, Seen
from paceline.policies.bandits.context import PolicyContext
from paceline.policies.bandits.evidence import Cell
from paceline.policies.bandits.state import Row

REWARD_RANGE: Final = 4.0
"""Rewards from here on are the best there are."""
MOST_STEP: Final = 2.0
"""What one outcome adds to the logarithm of a weight at most."""
MOST_GAIN: Final = 50.0
"""Difference of logarithms of weights beyond which one is nothing beside the other."""


class Exp3S(Bandit):
    """EXP3.S (Auer, Cesa-Bianchi, Freund, Schapire 2002): exponential weights that share.

    Part of all weight goes to every arm after each outcome, so that the best arm of late is found
    whatever was good before: that is its forgetting, and evidence does not age otherwise. A row is
    weight of outcomes and logarithm of the arm's weight; replicas' logarithms add. What is known
    aside is left out: its estimates are of pulled arms.

    Args:
        arms: see `Bandit`.
        rng: see `Bandit`.
        drafter: see `Bandit`.
        explore: share of pulls that go to all arms alike, in (0, 1].
        share: part of the weights that is shared at each outcome, 0 to 1.
        learning_rate: what an estimated reward adds to the logarithm of a weight, in (0, 1]; the
            paper's is ``explore`` over the number of arms, which is slow where few pulls count.

    Raises:
        ConfigError: a setting is outside its range.
    """

    kind = "exp3"
    width = 2

    def __init__(
        self,
        arms: Iterable[Arm],
        *,
        rng: random.Random,
        drafter: str = "",
        explore: float = 0.1,
        share: float = 0.001,
        learning_rate: float = 0.1,
    ) -> None:
        super().__init__(arms, rng=rng, discount=1.0, drafter=drafter)
        if not 0.0 < explore <= 1.0:
            raise ConfigError(f"explore is {explore}; give more than 0 and at most 1")
        if not 0.0 <= share <= 1.0:
            raise ConfigError(f"share is {share}; give 0 to 1")
        self._explore = explore
        if not 0.0 < learning_rate <= 1.0:
            raise ConfigError(f"learning_rate is {learning_rate}; give more than 0 and at most 1")
        self._share = share
        self._learning_rate = learning_rate

    def _chosen(self, cell: Cell, staying: Sequence[int], margin: float) -> int:
        """A draw; a margin would make its probability another."""
        probabilities = self._probabilities(cell)
        drawn, point = len(probabilities) - 1, self._rng.random()
        for arm, probability in enumerate(probabilities):
            point -= probability
            if point < 0.0:
                drawn = arm
                break
        cell.notes.setdefault("drawn", [0.0] * len(probabilities))[drawn] = probabilities[drawn]
        return drawn

    def _learn(
        self, context: PolicyContext, cell: Cell, arm: int, seen: Seen, aside: Mapping[int, Seen]
    ) -> None:
        """Of the pulled arm alone: the others were not drawn."""
        reward, weight = seen
        drawn = cell.notes.get("drawn")
        probability = (drawn[arm] if drawn else 0.0) or self._probabilities(cell)[arm]
        estimate = weight * min(reward, REWARD_RANGE) / REWARD_RANGE / probability
        (table,) = cell.tables
        rows = table.own_rows()
        rows[arm][0] = min(rows[arm][0] + weight, 1e6)
        rows[arm][1] += min(self._learning_rate * estimate, MOST_STEP)
        self._share_weights(rows, weight)
        table.set_own(rows)

    def _share_weights(self, rows: Sequence[Row], weight: float) -> None:
        """Each arm gets its part of all weights; the largest logarithm becomes 0."""
        top = max(row[1] for row in rows)
        weights = [math.exp(max(row[1] - top, -MOST_GAIN)) for row in rows]
        given = math.e * self._share * weight / len(rows) * sum(weights)
        gains = [math.log(each + given) for each in weights]
        top = max(gains)
        for row, gain in zip(rows, gains, strict=True):
            row[1] = gain - top

    def _probabilities(self, cell: Cell) -> list[float]:
        (table,) = cell.tables
        gains = [table.row(arm)[1] for arm in range(len(self._arms))]
        top = max(gains)
        weights = [math.exp(max(gain - top, -MOST_GAIN)) for gain in gains]
        total, even = sum(weights), self._explore / len(weights)
        return [(1.0 - self._explore) * each / total + even for each in weights]
