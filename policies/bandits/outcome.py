"""What came of an arm, and what that is worth beside the target alone."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from paceline.policies.bandits.arms import Arm

FULL_WEIGHT_ROUNDS: Final = 16.0
"""Rounds of an outcome that counts for one; as many as `Steady` teaches together."""
MOST_OUTCOME_WEIGHT: Final = 64.0
"""What one outcome counts for at most."""
FASTEST: Final = 1e-6
SLOWEST: Final = 1e6
"""Seconds of a round: what lies outside is not believed."""
MOST: Final = 1e12
"""Tokens, rounds or seconds of one outcome, likewise."""
BASELINE_DISCOUNT: Final = 0.95
LEAST_DEVIATION: Final = 0.02
MOST_DEVIATION: Final = 2.0
CLIP: Final = 2.0
"""Deviations from the expected rate beyond which an outcome moves it no further."""
GROWTH: Final = 4.0


class Outcome(msgspec.Struct, frozen=True):
    """What rounds with one arm gave; of several requests and rounds it may be the sum.

    Attributes:
        num_tokens: committed tokens.
        seconds: time of the rounds, each counted once for each request in it.
        num_rounds: rounds, likewise.
    """

    num_tokens: float
    seconds: float
    num_rounds: float = 1.0

    @property
    def is_usable(self) -> bool:
        """Whether anything can be learned from it: real numbers, rounds that took some time."""
        return (
            0.0 <= self.num_tokens <= MOST
            and 0.0 < self.num_rounds <= MOST
            and 0.0 < self.seconds <= MOST
            and FASTEST <= self.seconds / self.num_rounds <= SLOWEST
        )

    @property
    def weight(self) -> float:
        """What it counts for: by rounds, so that means are tokens over time, up to a bound."""
        return min(self.num_rounds / FULL_WEIGHT_ROUNDS, MOST_OUTCOME_WEIGHT)

    def reward(self, arm: Arm, base_rate: float) -> float:
        """Committed tokens a second over those of the target alone.

        At least 0 and at most twice what the arm could commit a round, so that no pause of the
        machine counts for more.

        Args:
            arm: what gave it.
            base_rate: tokens a second without drafts; 0 if unknown, then the time of a round
                without drafts is taken to be that of these rounds.
        """
        most = 2.0 * (arm.max_tokens + 1)
        base_tokens = base_rate * self.seconds if base_rate > 0 else self.num_rounds
        return min(self.num_tokens / max(base_tokens, self.num_tokens / most, 1e-300), most)


def shorter_draft(num_drafted: int, num_accepted: int, max_tokens: int) -> tuple[int, int]:
    """Rounds and drafted tokens that a shorter cap would have taken to commit what one round did.

    As if a draft that was right so far went on to be: who copies a text goes on with it. Taking the
    shorter draft's beginning alone would count its other rounds for nothing, and favour long ones.

    Args:
        num_drafted: tokens of the round's draft.
        num_accepted: how many of them were accepted; the round committed one more.
        max_tokens: the shorter cap; 0 for no drafts.
    """
    num_rounds = -(-(num_accepted + 1) // (max_tokens + 1))
    left = max(num_drafted - (num_rounds - 1) * (max_tokens + 1), 0)
    return num_rounds, (num_rounds - 1) * max_tokens + min(left, max_tokens)


class Baseline:
    """Tokens a second without drafts, learned robustly: a discounted mean of logarithms.

    An outcome that is far off moves it no further than one at two mean deviations (Huber 1964);
    the deviation itself grows, so that a lasting change is followed within some outcomes.
    """

    __slots__ = ("deviation", "log_rate", "weight")

    def __init__(self, weight: float = 0.0, log_rate: float = 0.0, deviation: float = 0.2) -> None:
        self.weight = weight
        self.log_rate = log_rate
        self.deviation = deviation

    @property
    def rate(self) -> float:
        """Tokens a second for one request, 0 if unknown."""
        return math.exp(self.log_rate) if self.weight > 0 else 0.0

    def learn(self, outcome: Outcome) -> None:
        """Take in a usable outcome without drafts; one without tokens says nothing. O(1)."""
        if outcome.num_tokens <= 0:
            return
        rate = min(max(outcome.num_tokens / outcome.seconds, 1.0 / SLOWEST), 1e9)
        if self.weight <= 0:
            self.weight, self.log_rate = outcome.weight, math.log(rate)
            return
        weight = outcome.weight
        self.weight = BASELINE_DISCOUNT**weight * self.weight + weight
        part = weight / self.weight
        error = math.log(rate) - self.log_rate
        most = CLIP * self.deviation
        self.log_rate += part * min(max(error, -most), most)
        spread = min(abs(error), GROWTH * self.deviation)
        deviation = self.deviation + part * (spread - self.deviation)
        self.deviation = min(max(deviation, LEAST_DEVIATION), MOST_DEVIATION)
