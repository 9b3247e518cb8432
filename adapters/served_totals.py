"""What an engine has served, by tenant and workload: totals of its requests' tallies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from paceline.caches import Source
from paceline.policies.series_bounds import SeriesBounds

Who = tuple[str, str]
"""Tenant and workload."""
Spent = tuple[float, float]
"""Seconds that a round takes as it is, and that one of the same requests without drafts would."""
UNKNOWN: Final[Spent] = (0.0, 0.0)


@dataclass(slots=True)
class Served:
    """Counts of one request, or of many.

    Attributes:
        requests: sequences that have begun.
        tokens: said.
        rounds: steps of the target after the first token of a reply.
        drafted: by `Source`, tokens that were verified.
        accepted: by `Source`, those that were right: each saved a round.
        round_seconds: expected time of those rounds whose time is known.
        undrafted_seconds: expected time of saying the tokens of these rounds without drafts, in the
            same batches.
    """

    requests: int = 0
    tokens: int = 0
    rounds: int = 0
    drafted: list[int] = field(default_factory=lambda: [0] * len(Source))
    accepted: list[int] = field(default_factory=lambda: [0] * len(Source))
    round_seconds: float = 0.0
    undrafted_seconds: float = 0.0

    def add(self, other: Served) -> None:
        """Add another's counts. O(sources)."""
        self.requests += other.requests
        self.tokens += other.tokens
        self.rounds += other.rounds
        self.drafted = [a + b for a, b in zip(self.drafted, other.drafted, strict=True)]
        self.accepted = [a + b for a, b in zip(self.accepted, other.accepted, strict=True)]
        self.round_seconds += other.round_seconds
        self.undrafted_seconds += other.undrafted_seconds


class ServedTotals:
    """Totals by tenant and workload, bounded in number. Not thread-safe."""

    def __init__(self) -> None:
        self._bounds = SeriesBounds()
        self._totals: dict[Who, Served] = {}

    def add(self, who: Who, counts: Served) -> None:
        """A request has left. O(sources)."""
        self._totals.setdefault(self._bounds.labels(*who), Served()).add(counts)

    def read(self, running: Iterable[tuple[Who, Served]]) -> Mapping[Who, Served]:
        """Copies of the totals, with what is still running counted in. O(pairs and running)."""
        read: dict[Who, Served] = {}
        for who, counts in self._totals.items():
            read.setdefault(who, Served()).add(counts)
        for who, counts in running:
            read.setdefault(self._bounds.labels(*who), Served()).add(counts)
        return read
