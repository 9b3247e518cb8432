"""What a model drafter adds to what memory drafts, and how long it has rested."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

EXPECTATIONS: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
"""Borders between what is learned apart: by how many tokens memory alone expects accepted."""
PRIOR_GAINS: Final = (1.2, 1.1, 1.0, 0.8, 0.5, 0.3, 0.15, 0.08)
"""Tokens gained before anything is learned, between those borders."""
PRIOR_ROUNDS: Final = 4.0
"""Rounds that the prior counts as."""
PRIOR: Final = tuple((PRIOR_ROUNDS, PRIOR_ROUNDS * gain) for gain in PRIOR_GAINS)
DISCOUNT: Final = 0.98
"""What a round still counts for after the next one of its kind."""
PATIENCE: Final = 64
"""Rounds in a row without the model after which one with it is tried again."""


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
        weight, total = self._learned.get(key, PRIOR)[interval]
        return max(0.0, total / weight)

    def learn(self, key: int, num_expected: float, num_gained: float) -> None:
        """A round with the model had `num_gained` more accepted than memory's draft would have."""
        learned = self._learned.setdefault(key, list(PRIOR))
        interval = bisect_right(EXPECTATIONS, num_expected)
        weight, total = learned[interval]
        learned[interval] = DISCOUNT * weight + 1.0, DISCOUNT * total + num_gained

    def forget(self, key: int) -> None:
        """Drop what was learned for a key."""
        self._learned.pop(key, None)


class Patience:
    """How long a model has rested, for each key: what it adds can only be seen where it runs."""

    def __init__(self) -> None:
        self._num_rested: dict[int, int] = {}

    def is_over(self, key: int, *, num_rounds: int = PATIENCE) -> bool:
        """Whether it is to be tried again, after so many rounds in a row without it."""
        return self._num_rested.get(key, 0) >= num_rounds

    def has_rested(self, key: int) -> bool:
        """Whether the key's last round went without the model."""
        return self._num_rested.get(key, 0) > 0

    def note(self, key: int, *, has_run: bool) -> None:
        """A round of the key went with or without the model."""
        self._num_rested[key] = 0 if has_run else self._num_rested.get(key, 0) + 1

    def forget(self, key: int) -> None:
        """Drop what is known of a key."""
        self._num_rested.pop(key, None)
