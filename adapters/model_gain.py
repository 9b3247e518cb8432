"""What a model drafter adds to what memory drafts, and whether it is worth its time in a round."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final

from paceline.policies.draft_budget import worth_their_time

EXPECTATIONS: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Borders between what is learned apart: by how many tokens memory alone expects accepted."""
PRIOR_GAINS: Final = (1.2, 1.1, 1.0, 0.8, 0.5, 0.3, 0.15, 0.08)
"""Tokens gained before anything is learned, between those borders."""
PRIOR_ROUNDS: Final = 4.0
"""Rounds that the prior counts as."""
DISCOUNT: Final = 0.98
"""What a round still counts for after the next one of its kind."""
PATIENCE: Final = 64
"""Rounds in a row without the model after which one with it is tried again."""
TIME_DISCOUNT: Final = 0.9


class ModelGain:
    """Accepted tokens that a model drafter adds to memory's, learned for each key.

    A discounted mean for each key and interval of what memory alone expected, so that the model is
    tried where memory is unsure and rests where memory knows. Nothing of one key reaches another.
    """

    def __init__(self) -> None:
        self._learned: dict[int, list[tuple[float, float]]] = {}

    def expected(self, key: int, num_expected: float) -> float:
        """Tokens that the model would add to a draft, at least 0. O(1).

        Args:
            key: whose.
            num_expected: tokens that memory alone expects to be accepted.
        """
        interval = bisect_right(EXPECTATIONS, num_expected)
        weight, total = self._of(key)[interval]
        return max(0.0, total / weight)

    def learn(self, key: int, num_expected: float, num_gained: float) -> None:
        """A round with the model had `num_gained` more accepted than memory's draft would have."""
        learned = self._learned.setdefault(key, self._of(key))
        interval = bisect_right(EXPECTATIONS, num_expected)
        weight, total = learned[interval]
        learned[interval] = DISCOUNT * weight + 1.0, DISCOUNT * total + num_gained

    def forget(self, key: int) -> None:
        """Drop what was learned for a key."""
        self._learned.pop(key, None)

    def _of(self, key: int) -> list[tuple[float, float]]:
        prior = [(PRIOR_ROUNDS, PRIOR_ROUNDS * gain) for gain in PRIOR_GAINS]
        return self._learned.get(key) or prior


class RelativeCost:
    """The model's time in units of the target's, from what rounds took."""

    def __init__(self) -> None:
        self._target_seconds = 0.0
        self._model_seconds = 0.0

    def note_target(self, seconds: float) -> None:
        """A step without prefill took that long before anything was drafted."""
        self._target_seconds = _smoothed(self._target_seconds, seconds)

    def note_model(self, seconds: float) -> None:
        """The model's passes of a round without prefill took that long."""
        self._model_seconds = _smoothed(self._model_seconds, seconds)

    @property
    def value(self) -> float:
        """Model time over target time; 0 until both are known."""
        if self._target_seconds <= 0 or self._model_seconds <= 0:
            return 0.0
        return self._model_seconds / self._target_seconds


class Patience:
    """How long a model has rested, for each key: what it adds can only be seen where it runs."""

    def __init__(self) -> None:
        self._num_rested: dict[int, int] = {}

    def is_over(self, key: int) -> bool:
        """Whether it is to be tried again, after `PATIENCE` rounds in a row without it."""
        return self._num_rested.get(key, 0) >= PATIENCE

    def note(self, key: int, *, has_run: bool) -> None:
        """A round of the key went with or without the model."""
        self._num_rested[key] = 0 if has_run else self._num_rested.get(key, 0) + 1

    def forget(self, key: int) -> None:
        """Drop what is known of a key."""
        self._num_rested.pop(key, None)


class ModelChoice:
    """Whether the model drafts in a round: it does where that yields more tokens a second.

    A round takes the target's time and yields, for each request, one token and the accepted ones.
    The model adds G tokens to the A of memory alone, for c times the target's time, so that it is
    worth it where (A + G) / (1 + c) > A, that is G > c * A. It is the case of `worth_their_time` in
    which only the pass costs, whoever is in it.
    """

    def __init__(self) -> None:
        self.cost = RelativeCost()
        self._patience = Patience()

    def wants_model(self, gains: Iterable[float], expected: Iterable[float]) -> bool:
        """The choice for a round.

        Every `PATIENCE` rounds without it the model is tried all the same.

        Args:
            gains: tokens that the model would add to each request's.
            expected: tokens that memory alone expects accepted of each request.
        """
        gained = list(gains)
        rows = [1.0 + num_tokens for num_tokens in expected]
        if not rows:
            return False
        wanted = self._patience.is_over(ROUND) or bool(
            worth_their_time(
                gained,
                [0.0] * len(gained),
                fixed_seconds=self.cost.value,
                base_tokens=sum(rows),
                base_seconds=1.0,
            )
        )
        self._patience.note(ROUND, has_run=wanted)
        return wanted


ROUND: Final = 0
"""Key of what is chosen for a whole round."""


def _smoothed(held: float, seconds: float) -> float:
    return seconds if held <= 0 else TIME_DISCOUNT * held + (1 - TIME_DISCOUNT) * seconds
