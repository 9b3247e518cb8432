"""What all engines have done so far, and what that comes to between two looks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Self

from paceline.middleware.dashboard.samples import Samples

SOURCES: Final = ("session", "workload", "tenant", "corpus", "model")
HISTORY_SECONDS: Final = 900.0
WINDOW_SECONDS: Final = 60.0
"""Over which a point of a ratio is taken, so that it does not jump with every reply."""
LEAST_DRAFTED: Final = 8.0
"""Drafted tokens of a source in a window below which its acceptance says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Counters over all engines; those of vLLM's own count where our worker tells nothing.

    Attributes:
        tokens: said.
        rounds: of requests.
        saved: rounds that drafts made needless.
        round_seconds: expected, of rounds as they were.
        undrafted_seconds: expected, of the same tokens without drafts.
        drafted: by source.
        accepted: by source.
    """

    tokens: float = 0.0
    rounds: float = 0.0
    saved: float = 0.0
    round_seconds: float = 0.0
    undrafted_seconds: float = 0.0
    drafted: dict[str, float] = field(default_factory=dict)
    accepted: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, samples: Samples) -> Self:
        """Those of one engine."""
        name = "paceline_served"
        if f"{name}_tokens_total" not in samples:
            return cls(
                tokens=samples.total("vllm:generation_tokens_total"),
                saved=samples.total("vllm:spec_decode_num_accepted_tokens_total"),
            )
        return cls(
            tokens=samples.total(f"{name}_tokens_total"),
            rounds=samples.total(f"{name}_rounds_total"),
            saved=samples.total(f"{name}_saved_rounds_total"),
            round_seconds=samples.total(f"{name}_round_seconds_total"),
            undrafted_seconds=samples.total(f"{name}_undrafted_seconds_total"),
            drafted=_by_source(samples, f"{name}_drafted_tokens_total"),
            accepted=_by_source(samples, f"{name}_accepted_tokens_total"),
        )

    def since(self, before: Totals) -> Totals:
        """What has been added; a counter that has fallen began anew with its engine."""
        return Totals(
            tokens=_risen(before.tokens, self.tokens),
            rounds=_risen(before.rounds, self.rounds),
            saved=_risen(before.saved, self.saved),
            round_seconds=_risen(before.round_seconds, self.round_seconds),
            undrafted_seconds=_risen(before.undrafted_seconds, self.undrafted_seconds),
            drafted=_all_risen(before.drafted, self.drafted),
            accepted=_all_risen(before.accepted, self.accepted),
        )

    def plus(self, other: Totals) -> Totals:
        """Both together."""
        return Totals(
            tokens=self.tokens + other.tokens,
            rounds=self.rounds + other.rounds,
            saved=self.saved + other.saved,
            round_seconds=self.round_seconds + other.round_seconds,
            undrafted_seconds=self.undrafted_seconds + other.undrafted_seconds,
            drafted=_added(self.drafted, other.drafted),
            accepted=_added(self.accepted, other.accepted),
        )

    @property
    def speedup(self) -> float | None:
        """Estimated, over no drafts; None where nothing is known."""
        return self.undrafted_seconds / self.round_seconds if self.round_seconds else None

    @property
    def tokens_per_step(self) -> float | None:
        """Tokens a round of a request."""
        return (self.rounds + self.saved) / self.rounds if self.rounds else None

    @property
    def acceptance(self) -> float | None:
        """Share of verified drafted tokens that were right."""
        drafted = sum(self.drafted.values())
        return sum(self.accepted.values()) / drafted if drafted else None

    def acceptance_of(self, source: str) -> float | None:
        """The same of one source; None where it has drafted too little to say."""
        drafted = self.drafted.get(source, 0.0)
        return self.accepted.get(source, 0.0) / drafted if drafted >= LEAST_DRAFTED else None


@dataclass(frozen=True, slots=True)
class Point:
    """What is drawn of one moment.

    Attributes:
        at: Unix time.
        tokens_per_second: over the looks before and after.
        window: what was added within `WINDOW_SECONDS`.
    """

    at: float
    tokens_per_second: float
    window: Totals


class History:
    """What engines came to over the last quarter of an hour.

    Engines are added up by what each has added, so that one that comes, goes or begins anew makes
    no step.
    """

    def __init__(self) -> None:
        self._last: dict[str, Totals] = {}
        self._sum = Totals()
        self._looks: deque[tuple[float, Totals]] = deque()

    def look(self, at: float, engines: Iterable[tuple[str, Totals]]) -> None:
        """Take in what engines show now; those that do not answer are left out."""
        for name, totals in engines:
            if name in self._last:
                self._sum = self._sum.plus(totals.since(self._last[name]))
            self._last[name] = totals
        self._looks.append((at, self._sum))
        while self._looks[0][0] < at - HISTORY_SECONDS:
            self._looks.popleft()

    def points(self) -> list[Point]:
        """One for each look but the first. O(looks)."""
        looks = list(self._looks)
        found: list[Point] = []
        start = 0
        for i in range(1, len(looks)):
            (before, earlier), (at, now) = looks[i - 1], looks[i]
            while looks[start][0] < at - WINDOW_SECONDS:
                start += 1
            rate = (now.tokens - earlier.tokens) / max(at - before, 1e-6)
            found.append(Point(at, max(rate, 0.0), now.since(looks[start][1])))
        return found

    def over(self, seconds: float) -> tuple[float, Totals]:
        """Seconds, at most so many, and what was added within them."""
        if not self._looks:
            return 0.0, Totals()
        at, now = self._looks[-1]
        began_at, before = next(each for each in self._looks if each[0] >= at - seconds)
        return at - began_at, now.since(before)


def _by_source(samples: Samples, name: str) -> dict[str, float]:
    return {source: value for (source,), value in samples.by(name, "source").items()}


def _risen(before: float, now: float) -> float:
    return now - before if now >= before else now


def _all_risen(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    return {name: _risen(before.get(name, 0.0), value) for name, value in now.items()}


def _added(first: dict[str, float], second: dict[str, float]) -> dict[str, float]:
    return {name: first.get(name, 0.0) + second.get(name, 0.0) for name in {**first, **second}}
