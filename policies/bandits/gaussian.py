"""Discounted Thompson sampling and discounted UCB over means that contexts lend each other."""

from __future__ import annotations

import math
import random
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, Final

from paceline.errors import ConfigError
from paceline.policies.bandits.arms import Arm
from paceline.policies.bandits.bandit import DISCOUNT, Bandit, best
from paceline.policies.bandits.context import PolicyContext
from paceline.policies.bandits.evidence import Cell
from paceline.policies.bandits.state import TableName

PRIOR_REWARD: Final = 1.0
"""An arm of which nothing is known is as good as none."""
PRIOR_WEIGHT: Final = 0.5
PRIOR_VARIANCE: Final = 0.1
"""Of rewards of about 1; that of larger ones grows with their square."""
PRIOR_COUNT: Final = 2.0
LEAST_VARIANCE: Final = 1e-4
LENT_WEIGHT: Final = 3.0
"""What all that wider tables know counts for, at most, in a narrower one."""
REFRESH: Final = 8
"""Choices of a context after which it asks its wider tables again."""
CHANGE_SLACK: Final = 0.5
CHANGE_CLIP: Final = 3.0
LEAST_FOR_CHANGE: Final = 2.0
"""Evidence on an arm, in outcomes of full weight, before its rewards can be found to change."""
SLOWER: Final = 8.0
"""Wider tables forget so many times as slowly: what was bad for long is not tried anew at once."""
TRIAL_SHARE: Final = 0.01
"""Of the time, for trying arms that have not been seen of late."""
LEAST_LOSS: Final = 0.25
"""What a trial is taken to cost at least, in the time of the best arm for the same tokens."""
MOST_SAVED: Final = 8.0
"""Time saved for trials, in holds of an arm; what costs more is not tried again."""
LEAST_REWARD: Final = 1e-3
SEEN_OF_LATE: Final = 1.0
CHANGE_THRESHOLD: Final = 10.0
LEFT_AFTER_CHANGE: Final = 0.02
"""What evidence counts for when rewards have been found to be others than they were."""

Estimate = tuple[float, float, float, float]
"""An arm's mean reward, the weight that it rests on, its variance, and the weight seen here."""


class GaussianBandit(Bandit):
    """Means and variances of each arm: a row is weight, sum, sum of squares and count.

    A context's means start from those of the same workload at the same load, and these from those
    of the key at that load (empirical Bayes), so that a new context is not explored from nothing.

    Where `change_threshold` is finite, a two-sided CUSUM (Page 1954) over the pulled arms' rewards
    looks for abrupt changes (CUSUM-UCB: Liu, Lee, Shroff, AAAI 2018), and then the context's
    evidence counts for next to nothing. Arms that have not been seen of late are tried for a share
    of the time, whatever they were: what they cost is saved for first.

    Args:
        arms: see `Bandit`.
        rng: see `Bandit`.
        discount: see `Bandit`.
        drafter: see `Bandit`.
        explore: how far beyond the means it looks, in standard deviations, at least 0; None for
            what was found best.
        change_threshold: deviations, summed, that are taken for a change; inf to look for none.
        trial_share: part of the time for arms that have not been seen of late, whatever they were.

    Raises:
        ConfigError: a setting is outside its range.
    """

    width = 4
    default_explore: ClassVar[float]

    def __init__(
        self,
        arms: Iterable[Arm],
        *,
        rng: random.Random,
        discount: float = DISCOUNT,
        drafter: str = "",
        explore: float | None = None,
        change_threshold: float = CHANGE_THRESHOLD,
        trial_share: float = TRIAL_SHARE,
    ) -> None:
        super().__init__(arms, rng=rng, discount=discount, drafter=drafter)
        explore = self.default_explore if explore is None else explore
        if not 0.0 <= explore < math.inf:
            raise ConfigError(f"explore is {explore}; give a number of at least 0")
        if not 0.0 <= trial_share <= 1.0:
            raise ConfigError(f"trial_share is {trial_share}; give 0 to 1")
        if not change_threshold > 0.0:
            raise ConfigError(f"change_threshold is {change_threshold}; give more than 0, or inf")
        self._explore = explore
        self._change_threshold = change_threshold
        self._trial_share = trial_share
        self._slow_discount = 1.0 - (1.0 - discount) / SLOWER

    def evidence(self, context: PolicyContext, arm: Arm) -> float:
        """How much is known of an arm, what wider tables lend included. O(1)."""
        number = self._numbered(arm)
        cell = self._evidence.cell(context)
        lent = self._prior(cell, number)[1] - PRIOR_WEIGHT
        return lent + cell.tables[0].row(number)[0]

    def loss(self, context: PolicyContext, arm: Arm) -> float:
        """See `Bandit.loss`."""
        estimates = self._estimates(self._evidence.cell(context))
        own = estimates[self._numbered(arm)][0]
        return max(estimates)[0] / max(own, LEAST_REWARD) - 1.0

    def _levels(self, context: PolicyContext) -> tuple[TableName, ...]:
        workload, batch = context.workload, context.batch_bucket
        return (workload, batch, context.context_bucket), (workload, batch, 0), (None, batch, 0)

    def _age(self, cell: Cell, weight: float) -> None:
        factor = self._discount**weight
        for table in cell.tables:
            table.age(factor)
            table.num_updates += 1
            factor = self._slow_discount**weight

    def _chosen(self, cell: Cell, staying: int | None, margin: float) -> int:
        cell.expected = estimates = self._estimates(cell)
        trial = self._trial(cell, estimates) if self._trial_share > 0.0 else None
        return best(self._scores(estimates), staying, margin) if trial is None else trial

    def _trial(self, cell: Cell, estimates: Sequence[Estimate]) -> int | None:
        """An arm that has not been seen of late, if the time saved for that pays for it.

        What it costs is how much longer it takes than the best one does.
        """
        saved = cell.notes.setdefault("saved", [0.0])
        saved[0] = min(saved[0] + self._trial_share, MOST_SAVED)
        if saved[0] < LEAST_LOSS:
            return None
        top = max(estimates)[0]
        least, found, cost = SEEN_OF_LATE, None, 0.0
        for arm, (mean, _, _, seen) in enumerate(estimates):
            loss = max(top / max(mean, LEAST_REWARD) - 1.0, LEAST_LOSS)
            if seen < least and loss <= saved[0]:
                least, found, cost = seen, arm, loss
        saved[0] -= cost
        self.num_trials += found is not None
        return found

    @abstractmethod
    def _scores(self, estimates: Sequence[Estimate]) -> list[float]:
        """How good each arm may be."""

    def _learn(
        self, context: PolicyContext, cell: Cell, arm: int, reward: float, weight: float
    ) -> None:
        if self._change_threshold < math.inf:
            self._look_for_change(cell, arm, reward, weight)
        self._learn_aside(context, cell, arm, reward, weight)

    def _learn_aside(
        self, context: PolicyContext, cell: Cell, arm: int, reward: float, weight: float
    ) -> None:
        row = (weight, weight * reward, weight * reward * reward, 1.0)
        for table in cell.tables:
            table.add(arm, row)

    def _estimates(self, cell: Cell) -> list[Estimate]:
        """What is known of each arm. O(arms)."""
        rows, scale = cell.tables[0].scaled_rows()
        means, weights = self._priors(cell)
        found = []
        for (weight, total, squares, count), prior, lent in zip(rows, means, weights, strict=True):
            seen = weight * scale
            held = lent + seen
            mean = (lent * prior + total * scale) / held
            variance = PRIOR_COUNT * PRIOR_VARIANCE * max(mean * mean, 1.0)
            if weight > 0.0:
                variance += max(squares - total * total / weight, 0.0) * scale
            variance /= PRIOR_COUNT + count * scale
            found.append((mean, held, max(variance, LEAST_VARIANCE), seen))
        return found

    def _priors(self, cell: Cell) -> tuple[list[float], list[float]]:
        """What wider tables lend each arm, means and weights; they are asked now and then."""
        notes = cell.notes
        asked = notes.get("asked")
        if asked is None or asked[0] >= REFRESH:
            pairs = [self._prior(cell, arm) for arm in range(len(self._arms))]
            notes["means"] = [mean for mean, _ in pairs]
            notes["weights"] = [weight for _, weight in pairs]
            notes["asked"] = asked = [0.0]
        asked[0] += 1.0
        return notes["means"], notes["weights"]

    def _prior(self, cell: Cell, arm: int) -> tuple[float, float]:
        mean, held = PRIOR_REWARD, PRIOR_WEIGHT
        for table in cell.tables[:0:-1]:
            weight, total, _, _ = table.row(arm)
            whole = held + weight
            mean = (held * mean + total) / whole
            held = min(whole, LENT_WEIGHT)
        return mean, held

    def _look_for_change(self, cell: Cell, arm: int, reward: float, weight: float) -> None:
        """Before the reward is learned: is it, with those before it, another than expected?"""
        mean, held, variance, seen = (cell.expected or self._estimates(cell))[arm]
        cell.expected = None  # of use once: the next outcome has this one behind it
        if seen < LEAST_FOR_CHANGE:
            return  # what wider tables lend may be wrong here, which is no change
        sums = cell.notes.setdefault("change", [0.0, 0.0])
        deviation = math.sqrt(variance / weight + variance / held)
        z = min(max((reward - mean) / deviation, -CHANGE_CLIP), CHANGE_CLIP)
        sums[0] = max(0.0, sums[0] + z - CHANGE_SLACK)
        sums[1] = max(0.0, sums[1] - z - CHANGE_SLACK)
        if max(sums) > self._change_threshold:
            cell.notes.clear()
            cell.num_changes += 1
            for table in cell.tables:
                table.age(LEFT_AFTER_CHANGE)


class ThompsonSampling(GaussianBandit):
    """Discounted Thompson sampling with normal rewards of unknown variance.

    Thompson 1933; discounted: Raj and Kalyani, arXiv 1707.09727; for speculation: BanditSpec,
    arXiv 2505.15141, and EESD, arXiv 2402.01528. Discounting widens what has not been tried for
    long, so that it is tried again.
    """

    kind = "thompson"
    default_explore = 0.5

    def _scores(self, estimates: Sequence[Estimate]) -> list[float]:
        gauss, explore = self._rng.gauss, self._explore
        return [
            mean + explore * math.sqrt(variance / weight) * gauss(0.0, 1.0)
            for mean, weight, variance, _ in estimates
        ]


class DiscountedUCB(GaussianBandit):
    """Discounted UCB: Garivier and Moulines, arXiv 0805.3415 (ALT 2011).

    The bound is in each arm's own deviations instead of the rewards' range, as in UCB-V (Audibert,
    Munos, Szepesvári 2009): ranges of speedups are wide, and mostly unused.
    """

    kind = "ucb"
    default_explore = 0.1

    def _scores(self, estimates: Sequence[Estimate]) -> list[float]:
        width = math.log1p(sum(weight for _, weight, _, _ in estimates))
        return [
            mean + self._explore * math.sqrt(2.0 * width * variance / weight)
            for mean, weight, variance, _ in estimates
        ]
