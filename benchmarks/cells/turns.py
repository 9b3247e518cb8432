"""What is made of cells with a turn: how soon a bandit is back at the best way without one.

Requests are counted in the order in which they finish, from the moment at which the first prompt
of the other kind was taken up; so the first ones are those that were still in flight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import geometric_mean, median
from typing import Final

from paceline.benchmarks.cells.records import BANDIT, FIXED, OFF, CellResult, Mark

GOAL: Final = 0.95
"""Of the best way's speed, that a bandit is to be back at."""
BEFORE: Final = "before"
AFTER: Final = "after"
REST: Final = "rest"

Run = tuple[CellResult, CellResult]
"""A way's result, and that of the engine without speculation beside it."""


@dataclass(frozen=True, slots=True)
class Span:
    """Requests in the order in which they finish.

    Attributes:
        first: counted behind the turn from 1; up to 0 are before it.
        last: of them, not less than the first.
    """

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How the requests behind the turn are looked at.

    Attributes:
        within: of them, by which a bandit is to be back.
        window: of them, that are looked at together; at least 1.
    """

    within: int = 50
    window: int = 25

    def spans(self, runs: Sequence[CellResult]) -> dict[str, Span]:
        """Windows by their names, and all that is before, after, and behind `within`.

        What is after the turn ends for all runs where the shortest of them does.
        """
        before = max(run.turn for run in runs)
        last = min(len(run.marks) - 1 - run.turn for run in runs)
        firsts = range(1, last - self.window + 2, self.window)
        windows = {f"{n}-{n + self.window - 1}": Span(n, n + self.window - 1) for n in firsts}
        whole = {AFTER: Span(1, last), REST: Span(self.within + 1, last)}
        return {BEFORE: Span(1 - before, 0)} | windows | whole


def per_second(run: CellResult, span: Span, *, by_processor: bool = False) -> float:
    """Tokens said a second, between two requests' ends, by all that ran.

    Args:
        run: of a cell with a turn.
        span: what lies before the end of the warm-up is left out.
        by_processor: count the processor's seconds instead of the clock's.

    Returns:
        NaN where all of the span's requests ended in one step, with the one before it.
    """
    began, ended = _ends(run, span)
    took = ended.seconds - began.seconds
    if by_processor:
        took = ended.cpu_seconds - began.cpu_seconds
    num_tokens = ended.num_tokens - began.num_tokens
    return num_tokens / took if num_tokens else math.nan


def drafted(run: CellResult, span: Span) -> float:
    """Tokens verified for each token said; NaN where none was."""
    began, ended = _ends(run, span)
    num_tokens = ended.num_tokens - began.num_tokens
    return (ended.draft_tokens - began.draft_tokens) / num_tokens if num_tokens else math.nan


def _ends(run: CellResult, span: Span) -> tuple[Mark, Mark]:
    return run.marks[max(run.turn + span.first - 1, 0)], run.marks[run.turn + span.last]


class Speeds:
    """Speeds of ways in spans of requests, over all repeats."""

    def __init__(self, runs: Mapping[str, Sequence[Run]], plan: Plan) -> None:
        """Take runs.

        Args:
            runs: of each way, one a repeat; the same number of all.
            plan: how they are looked at.
        """
        self._runs = runs
        self._plan = plan
        self.spans = plan.spans([run for pairs in runs.values() for pair in pairs for run in pair])

    @property
    def ways(self) -> list[str]:
        """All of them, off first."""
        return [OFF, *self._runs]

    def tokens_per_second(self, way: str, name: str) -> float:
        """The median of a way's runs; of off all that ran beside others."""
        return median(per_second(run, self.spans[name]) for run in self._of(way))

    def times_off(self, way: str, name: str, *, by_processor: bool = False) -> float:
        """Times the speed of the engine beside it, the geometric mean of the repeats."""
        return geometric_mean(self._ratios(way, name, by_processor=by_processor))

    def drafted(self, way: str, name: str) -> float:
        """Tokens verified for each token said, the median of a way's runs."""
        return median(drafted(run, self.spans[name]) for run in self._of(way))

    def best(self, name: str, *, is_fixed: bool = False) -> str:
        """The way without a bandit that says most tokens a second in a span, in hindsight.

        Args:
            name: of the span.
            is_fixed: leave out those that choose by time, too.
        """
        without = [way for way in self.ways if not way.endswith(BANDIT)]
        if is_fixed:
            without = [way for way in without if way == OFF or way.startswith(FIXED)]
        return max(without, key=lambda way: self.times_off(way, name))

    def noise(self, name: str) -> float:
        """The widest ratio of two engines that did the same: off, in one repeat.

        1 where only one ran.
        """
        widest = 1.0
        for repeat in zip(*self._runs.values(), strict=True):
            speeds = [per_second(off, self.spans[name]) for _, off in repeat]
            for a, b in combinations(speeds, 2):
                widest = max(widest, a / b, b / a)
        return widest

    def shares(self, way: str, name: str, of: str) -> list[float]:
        """Of another way's speed, each beside its own engine that is off, by repeats."""
        both = zip(self._ratios(way, name), self._ratios(of, name), strict=True)
        return [mine / other for mine, other in both]

    def share(self, way: str, name: str, of: str) -> float:
        """Of another way's speed, over all repeats."""
        return geometric_mean(self.shares(way, name, of))

    def first_back(self, way: str, of: str) -> str | None:
        """The first window in which a way has the goal's share of another's speed."""
        windows = (name for name in self.spans if name not in (BEFORE, AFTER, REST))
        return next((name for name in windows if self.share(way, name, of) >= GOAL), None)

    def identical(self, way: str) -> float:
        """Share of runs whose replies were those of the engine beside."""
        same = [mine.digest == off.digest for mine, off in self._runs[way]]
        return sum(same) / len(same)

    def _ratios(self, way: str, name: str, *, by_processor: bool = False) -> list[float]:
        if way == OFF:
            return [1.0 for _ in next(iter(self._runs.values()))]
        span = self.spans[name]
        return [
            per_second(mine, span, by_processor=by_processor)
            / per_second(off, span, by_processor=by_processor)
            for mine, off in self._runs[way]
        ]

    def _of(self, way: str) -> list[CellResult]:
        if way == OFF:
            return [off for pairs in self._runs.values() for _, off in pairs]
        return [mine for mine, _ in self._runs[way]]


def turn_figures(speeds: Speeds) -> dict[str, float]:
    """Of each way its speeds, of each with a bandit its share of the best without one."""
    best, best_fixed = speeds.best(AFTER), speeds.best(AFTER, is_fixed=True)
    found: dict[str, float] = {}
    for name, span in speeds.spans.items():
        found[f"{name}.requests"] = span.last - span.first + 1
        found[f"{name}.widest_ratio_of_off"] = speeds.noise(name)
    for way in speeds.ways:
        for name in speeds.spans:
            found[f"{way}.{name}.tokens_per_second"] = speeds.tokens_per_second(way, name)
            found[f"{way}.{name}.times_off"] = speeds.times_off(way, name)
            found[f"{way}.{name}.drafted_per_token"] = speeds.drafted(way, name)
        if way != OFF:
            found[f"{way}.identical"] = speeds.identical(way)
        if way.endswith(BANDIT):
            found |= _shares(speeds, way, best, best_fixed)
        else:
            found[f"{way}.is_best_before"] = float(way == speeds.best(BEFORE))
            found[f"{way}.is_best_after"] = float(way == best)
    return found


def _shares(speeds: Speeds, way: str, best: str, best_fixed: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in speeds.spans:
        of = speeds.best(BEFORE) if name == BEFORE else best
        fixed = speeds.best(BEFORE, is_fixed=True) if name == BEFORE else best_fixed
        by_processor = [speeds.times_off(e, name, by_processor=True) for e in (way, of)]
        by_itself = [speeds.tokens_per_second(e, name) for e in (way, of)]
        found[f"{way}.{name}.of_best"] = speeds.share(way, name, of)
        each = speeds.shares(way, name, of)
        found[f"{way}.{name}.of_best_least"] = min(each)
        found[f"{way}.{name}.of_best_most"] = max(each)
        found[f"{way}.{name}.of_best_fixed"] = speeds.share(way, name, fixed)
        found[f"{way}.{name}.of_best_by_processor"] = by_processor[0] / by_processor[1]
        found[f"{way}.{name}.of_best_unpaired"] = by_itself[0] / by_itself[1]
    back = speeds.first_back(way, best)
    found[f"{way}.is_back"] = float(speeds.share(way, REST, best) >= GOAL)
    found[f"{way}.back_from_request"] = speeds.spans[back].first if back else float("nan")
    return found


def turn_table(speeds: Speeds) -> str:
    """What to read on a terminal."""
    best = speeds.best(AFTER)
    width = max(len(way) for way in (*speeds.ways, "widest ratio of off"))
    columns = [f"{name:>9}" for name in speeds.spans]
    lines = [f"{'times off':<{width}}{''.join(columns)}"]
    lines += [
        _row(way, width, [speeds.times_off(way, name) for name in speeds.spans])
        for way in speeds.ways
    ]
    noise = [speeds.noise(name) for name in speeds.spans]
    lines += [_row("widest ratio of off", width, noise), ""]
    lines.append(f"best before: {speeds.best(BEFORE)}, after: {best}; tokens a second, of it:")
    bandits = [way for way in speeds.ways if way.endswith(BANDIT)]
    for way in bandits:
        shares = [
            speeds.share(way, name, speeds.best(BEFORE) if name == BEFORE else best)
            for name in speeds.spans
        ]
        lines.append(_row(way, width, shares))
    lines += ["", *(_sentence(speeds, way, best) for way in bandits)]
    return "\n".join(lines)


def _row(title: str, width: int, values: Sequence[float]) -> str:
    return f"{title:<{width}}{''.join(f'{value:9.3f}' for value in values)}"


def _sentence(speeds: Speeds, way: str, best: str) -> str:
    rest, share = speeds.spans[REST], speeds.share(way, REST, best)
    fixed = speeds.best(AFTER, is_fixed=True)
    return (
        f"{way}: {share:.3f} of {best} in requests {rest.first} to {rest.last} behind the turn "
        f"({'at' if share >= GOAL else 'below'} the goal of {GOAL}), "
        f"{speeds.share(way, REST, fixed):.3f} of {fixed}, the best fixed one; the first window at "
        f"the goal: {speeds.first_back(way, best) or 'none'}"
    )
