"""How late records arrive, counted for a histogram."""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

LAG_BOUNDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, math.inf)
"""Upper bounds of the histogram's buckets, in seconds."""


@dataclass(frozen=True, slots=True)
class LagCounts:
    """How late the records of others were delivered.

    Attributes:
        counts: records in each bucket of `LAG_BOUNDS`.
        total_seconds: sum over all records.
    """

    counts: Sequence[int]
    total_seconds: float


class LagHistogram:
    """Counts lags; written by one thread, read by others."""

    def __init__(self) -> None:
        self._counts = [0] * len(LAG_BOUNDS)
        self._total = 0.0
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        """Count one record; a clock that runs behind makes no lag negative."""
        lag = max(0.0, seconds)
        with self._lock:
            self._counts[bisect_left(LAG_BOUNDS, lag)] += 1
            self._total += lag

    def read(self) -> LagCounts:
        """What was counted so far."""
        with self._lock:
            return LagCounts(tuple(self._counts), self._total)
