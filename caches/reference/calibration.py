"""What `ReferenceIndex` has learned of its drafts: the native core's `Calibration` again."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Final

import numpy as np

_LENGTH_BOUNDS: Final = (0, 1, 2, 3, 4, 6, 9, 13, 21, 32, 64)
_DEPTH_BOUNDS: Final = (0, 1, 3, 8)
_VOTE_BOUNDS: Final = (1, 2, 4)
_SHARE_BOUNDS: Final = (0.5, 0.7, 0.9)
_PRIOR_TOTAL: Final = 4.0
_CELL_LIMIT: Final = 4000.0
_ACCEPTANCE_ODDS: Final = (
    (0.2, 0.0025),
    (0.4, 0.4),
    (0.8, 0.6),
    (2.4, 2.4),
    (1.4, 0.16),
    (0.6, 0.04),
    (0.3, 0.016),
)
"""By agreement: odds at a match of no token, and what each matched token adds."""

Cell = tuple[int, ...]
"""(source, misses, length bucket), and for acceptance also (agreement, depth bucket)."""


class Frequencies:
    """How often what fell into a cell was right. float32, as the native tables are."""

    def __init__(self, prior_odds: Callable[..., float]) -> None:
        self._prior_odds = prior_odds
        self._cells: dict[Cell, tuple[np.float32, np.float32]] = {}

    def probability(self, cell: Cell) -> float:
        """Share of hits, the prior's included."""
        hits, total = self._counts(cell)
        return float(hits / total)

    def record(self, cell: Cell, *, hit: bool) -> None:
        """Count one trial."""
        hits, total = self._counts(cell)
        hits, total = hits + np.float32(hit), total + np.float32(1)
        if total >= _CELL_LIMIT:
            hits, total = hits * np.float32(0.5), total * np.float32(0.5)
        self._cells[cell] = hits, total

    def _counts(self, cell: Cell) -> tuple[np.float32, np.float32]:
        if cell not in self._cells:
            odds = self._prior_odds(*cell)
            total = np.float32(_PRIOR_TOTAL)
            self._cells[cell] = np.float32(odds / (1.0 + odds)) * total, total
        return self._cells[cell]


class Calibration:
    """How often a single candidate is right, and how often the winner of a vote is."""

    def __init__(self) -> None:
        self.trust = Frequencies(_trust_odds)
        self.acceptance = Frequencies(_acceptance_odds)


def length_bucket(match_length: int) -> int:
    """Cells of match lengths: exact while short."""
    return bisect_right(_LENGTH_BOUNDS, match_length) - 1


def depth_bucket(depth: int) -> int:
    """Cells of depths within a draft."""
    return bisect_right(_DEPTH_BOUNDS, depth) - 1


def agreement_bucket(num_guesses: int, num_votes: int, share: float) -> int:
    """1 to 3: nobody disagrees, by the number of votes; else by the winner's share of weight."""
    if num_guesses == 1:
        return bisect_right(_VOTE_BOUNDS, num_votes)
    return (0, 6, 5, 4)[bisect_left(_SHARE_BOUNDS, share)]


def _trust_odds(_source: int, misses: int, length: int) -> float:
    return (_LENGTH_BOUNDS[length] + 0.3) * (1.0 + 2.0 * misses) / 4.0


def _acceptance_odds(_source: int, _misses: int, length: int, agreement: int, _depth: int) -> float:
    start, per_token = _ACCEPTANCE_ODDS[agreement]
    return start + per_token * _LENGTH_BOUNDS[length]
