"""Discounted Thompson sampling and discounted UCB over means that contexts lend each other."""

from __future__ import annotations

import math
import random
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Final

from paceline.errors import ConfigError
from paceline.policies.bandits.arms import Arm
from paceline.policies.bandits.bandit import DISCOUNT, Bandit, Seen, best
from paceline.policies.bandits.change import (
    LEAST_VARIANCE,
    PRIOR_COUNT,
    PRIOR_VARIANCE,
    ChangeWatch,
)
from paceline.policies.bandits.context import PolicyContext
from paceline.policies.bandits.evidence import Cell
from paceline.policies.bandits.state import TableName

PRIOR_REWARD: Final = 1.0
"""An arm of which nothing is known is as good as none."""
PRIOR_WEIGHT: Final = 0.5
LENT_WEIGHT: Final = 3.0
"""What all that wider tables know counts for, at most, in a narrower one."""
REFRESH: Final = 8
"""Choices of a context after which it asks its wider tables again."""
RATIO_WEIGHT: Final = 1.0
"""Rewards, seen beside a shorter draft's, that speak for being as good as it."""
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
LITTLE_SEEN: Final = 6.0
"""Evidence up to which an arm that is better than it was is tried again at once."""
CHANGE_THRESHOLD: Final = 10.0
LEFT_IN_WIDER: Final = 0.02
"""What evidence counts for, in wider tables, when rewards are found to be others than they were."""
LEFT_HERE: Final = 0.05
"""What that is worth in the context itself."""
FURTHER: Final = 2.0
"""Standard deviations that are looked further after a change, at first."""
FURTHER_CHOICES: Final = 40.0
"""Choices over which that comes to nothing."""
CALM: Final = 64.0
"""Choices since the last change, below which it is looked less far after the next."""

Estimate = tuple[float, float, float, float]
"""An arm's mean reward, the weight that it rests on, its variance, and the weight seen here."""
UNKNOWN: Final[Estimate] = (PRIOR_REWARD, PRIOR_WEIGHT, PRIOR_VARIANCE, 0.0)


class GaussianBandit(Bandit):
    """Means and variances of each arm.

    A row is weight, sum, sum of squares and count of its rewards; and of those that were seen
    beside the next shorter draft's of the same sources, their sum and the sum of that one's. A mean
    is that one's times the ratio of the two, so that an arm that was seen in lucky rounds only is
    not taken for better (a ratio estimator: Cochran 1977, chapter 6).

    A context's means start from those of the same workload at the same load, and these from those
    of the key at that load (empirical Bayes), so that a new context is not explored from nothing.

    Where `change_threshold` is finite, abrupt changes are looked for (`ChangeWatch`), and then the
    context begins from nothing and looks further beyond its means for a while. Arms that have not
    been seen of late are tried for a share of the time, whatever they were: what they cost is saved
    for first.

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

    width = 6
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
        self._parents = [_parent_of(arm, self._arms) for arm in self._arms]
        in_order = sorted(range(len(self._arms)), key=lambda i: _order(self._arms[i]))
        self._in_order = [(i, self._parents[i]) for i in in_order]

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

    def _chosen(self, cell: Cell, staying: Sequence[int], margin: float) -> int:
        estimates = self._estimates(cell)
        trial = self._trial(cell, estimates) if self._trial_share > 0.0 else None
        if trial is not None:
            return trial
        return best(self._scores(estimates, self._further(cell)), staying, margin)

    def _trial(self, cell: Cell, estimates: Sequence[Estimate]) -> int | None:
        """An arm that has not been seen of late, if the time saved for that pays for it.

        What it costs is how much longer it takes than the best one does.
        """
        saved = cell.notes.setdefault("saved", [0.0])
        saved[0] = min(saved[0] + self._trial_share, MOST_SAVED)
        for arm in cell.watch.rising() if cell.watch is not None else ():
            if estimates[arm][3] < LITTLE_SEEN:  # better than it was: is that so?
                return arm
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
    def _scores(self, estimates: Sequence[Estimate], explore: float) -> list[float]:
        """How good each arm may be, `explore` deviations beyond its mean."""

    def _learn(
        self, context: PolicyContext, cell: Cell, arm: int, seen: Seen, aside: Mapping[int, Seen]
    ) -> None:
        everything = {**aside, arm: seen}
        if self._change_threshold < math.inf:
            watch = cell.watch
            if watch is None:
                watch = cell.watch = ChangeWatch(self._change_threshold)
            if watch.saw(everything):
                self._begin_anew(cell)
        for number, (reward, weight) in everything.items():
            total, parent = weight * reward, everything.get(self._parents[number])
            paired = (0.0, 0.0) if parent is None else (total, weight * parent[0])
            row = (weight, total, total * reward, 1.0, *paired)
            for table in cell.tables:
                table.add(number, row)

    def _begin_anew(self, cell: Cell) -> None:
        """Rewards are others than they were: what was known of them is next to nothing now.

        What wider tables lend is left out from now on: most of it was seen here. For some choices
        it looks far, not where changes follow each other so that nothing found would last.
        """
        calm = cell.notes.get("since", [CALM])[0]
        cell.notes.clear()
        cell.notes["since"] = [0.0]
        cell.notes["further"] = [FURTHER * min(1.0, calm / CALM)]
        cell.num_changes += 1
        cell.is_alone = True
        for table in cell.tables:
            table.age(LEFT_IN_WIDER)
        cell.tables[0].age(LEFT_HERE)

    def _further(self, cell: Cell) -> float:
        """How far beyond the means a choice looks, in standard deviations."""
        since = cell.notes.get("since")
        if since is None:
            return self._explore
        since[0] += 1.0
        left = max(0.0, 1.0 - since[0] / FURTHER_CHOICES)
        return self._explore + cell.notes["further"][0] * left

    def _estimates(self, cell: Cell) -> list[Estimate]:
        """What is known of each arm. O(arms)."""
        rows, scale = cell.tables[0].scaled_rows()
        means, weights = self._priors(cell)
        found = [UNKNOWN] * len(rows)
        for arm, parent in self._in_order:
            weight, total, squares, count, paired, beside = rows[arm]
            lent, seen = weights[arm], weight * scale
            held = lent + seen
            rewards = total * scale
            if beside > 0.0 and total > 0.0:
                ratio = (RATIO_WEIGHT + paired * scale) / (RATIO_WEIGHT + beside * scale)
                rewards += paired / total * seen * found[parent][0] * ratio - paired * scale
            mean = (lent * means[arm] + rewards) / held
            variance = PRIOR_COUNT * PRIOR_VARIANCE * max(mean * mean, 1.0)
            if weight > 0.0:
                variance += max(squares - total * total / weight, 0.0) * scale
            variance /= PRIOR_COUNT + count * scale
            found[arm] = mean, held, max(variance, LEAST_VARIANCE), seen
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
        if cell.is_alone:
            return mean, held
        for table in cell.tables[:0:-1]:
            weight, total, *_ = table.row(arm)
            whole = held + weight
            mean = (held * mean + total) / whole
            held = min(whole, LENT_WEIGHT)
        return mean, held


def _parent_of(arm: Arm, arms: Sequence[Arm]) -> int:
    """Number of the arm whose rounds are seen wherever this one's are; -1 for none.

    The next shorter draft of the same sources; of the shortest with a model, memory's as long.
    """
    shorter = [
        number
        for number, each in enumerate(arms)
        if each.sources == arm.sources and 0 < each.max_tokens < arm.max_tokens
    ]
    if shorter:
        return max(shorter, key=lambda i: arms[i].max_tokens)
    beside = Arm("memory", arm.max_tokens) if arm.sources == "both" else None
    return arms.index(beside) if beside in arms else -1


def _order(arm: Arm) -> tuple[bool, int]:
    """Parents first."""
    return arm.has_model, arm.max_tokens


class ThompsonSampling(GaussianBandit):
    """Discounted Thompson sampling with normal rewards of unknown variance.

    Thompson 1933; discounted: Raj and Kalyani, arXiv 1707.09727; for speculation: BanditSpec,
    arXiv 2505.15141, and EESD, arXiv 2402.01528. Discounting widens what has not been tried for
    long, so that it is tried again.
    """

    kind = "thompson"
    default_explore = 0.5

    def _scores(self, estimates: Sequence[Estimate], explore: float) -> list[float]:
        gauss = self._rng.gauss
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

    def _scores(self, estimates: Sequence[Estimate], explore: float) -> list[float]:
        width = math.log1p(sum(weight for _, weight, _, _ in estimates))
        return [
            mean + explore * math.sqrt(2.0 * width * variance / weight)
            for mean, weight, variance, _ in estimates
        ]
