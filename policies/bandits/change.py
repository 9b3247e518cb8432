"""Whether an arm's rewards have become others than they were, all at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

PRIOR_VARIANCE: Final = 0.1
"""Of rewards of about 1; that of larger ones grows with their square."""
PRIOR_COUNT: Final = 2.0
LEAST_VARIANCE: Final = 1e-4
SLACK: Final = 0.5
"""Deviations that an outcome may be off and is no sign of a change."""
CLIP: Final = 3.0
"""Deviations that one outcome counts for at most."""
LEAD: Final = 2.0
"""Deviations, summed, that are worth another look."""
MOST_WEIGHT: Final = 30.0
"""Outcomes of full weight that an arm's mean goes back."""


class _Arm:
    """What one arm's rewards were, and how far those of late are off.

    Attributes:
        weight: evidence that the mean rests on.
        mean: of rewards.
        squares: about the mean, weighted.
        count: outcomes, aged as the weight is.
        up: deviations above the mean, summed.
        down: likewise below.
    """

    __slots__ = ("count", "down", "mean", "squares", "up", "weight")

    def __init__(self, reward: float, weight: float) -> None:
        self.weight, self.mean = weight, reward
        self.squares, self.count = 0.0, 1.0
        self.up = self.down = 0.0

    def saw(self, reward: float, weight: float) -> None:
        variance = PRIOR_COUNT * PRIOR_VARIANCE * max(self.mean * self.mean, 1.0) + self.squares
        variance = max(variance / (PRIOR_COUNT + self.count), LEAST_VARIANCE)
        deviation = math.sqrt(variance / weight + variance / self.weight)
        off = min(max((reward - self.mean) / deviation, -CLIP), CLIP)
        self.up = max(0.0, self.up + off - SLACK)
        self.down = max(0.0, self.down - off - SLACK)
        share, error = weight / (self.weight + weight), off * deviation
        self.mean += share * error
        self.squares += weight * (1.0 - share) * error * error
        self.weight += weight
        self.count += 1.0
        if self.weight > MOST_WEIGHT:
            kept = MOST_WEIGHT / self.weight
            self.weight *= kept
            self.squares *= kept
            self.count *= kept


class ChangeWatch:
    """Looks for abrupt changes of one context's rewards: a two-sided CUSUM for each arm.

    Page 1954; for each arm apart, with the means of before as reference, as in CUSUM-UCB (Liu, Lee,
    Shroff, AAAI 2018). The mean does not age: an arm that was not pulled for long is held against
    what it was when it was, so that a trial that shows another reward is a sign, too. It moves no
    further than an outcome of `CLIP` deviations (Huber 1964) and so follows a slow drift, but no
    jump. O(arms) an outcome.

    Args:
        threshold: deviations, summed, that are taken for a change.
    """

    __slots__ = ("_arms", "_threshold")

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._arms: dict[int, _Arm] = {}

    def saw(self, rewards: Mapping[int, tuple[float, float]]) -> bool:
        """Takes in what was seen of arms at once. Whether that makes it a change.

        Then all of them begin anew.

        Args:
            rewards: reward and weight of each arm that something is known of.
        """
        is_change = False
        for arm, (reward, weight) in rewards.items():
            known = self._arms.get(arm)
            if known is None:
                self._arms[arm] = _Arm(reward, weight)
            else:
                known.saw(reward, weight)
                is_change |= max(known.up, known.down) > self._threshold
        if is_change:
            self._arms.clear()
        return is_change

    def rising(self) -> list[int]:
        """Arms whose rewards of late are above what they were, but not surely."""
        return [arm for arm, known in self._arms.items() if known.up > LEAD]
