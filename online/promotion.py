"""The promotion gate: whether a newly trained drafter may take the place of the one that runs.

Both have replayed the same held-out sessions (`greedy_replay`). The candidate passes if it is
surely better in accepted tokens a round over all of them, and on no workload worse than it may be.
No torch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from paceline.caches.drafter_registry import GateResult, SliceResult
from paceline.errors import ConfigError
from paceline.online.greedy_replay import ReplayCounts, total
from paceline.online.looks import never

PART_DRAWS: Final = 1 << 16
"""Sessions that are drawn at a time, over all resamples: a few ms."""
OTHERS: Final = "(workloads with few sessions)"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionReplay:
    """What both drafters do on one held-out session, as far as it is of one workload.

    Attributes:
        session: name, unique across tenants; what is not independent of it has the same.
        workload: "" if unknown.
        before: of the drafter that runs.
        after: of the candidate, on the same tokens.

    Raises:
        ConfigError: the tokens are not the same.
    """

    session: str
    workload: str
    before: ReplayCounts
    after: ReplayCounts

    def __post_init__(self) -> None:
        if self.before.num_tokens != self.after.num_tokens:
            raise ConfigError(
                f"session {self.session!r} has {self.before.num_tokens} tokens before and "
                f"{self.after.num_tokens} after; replay both drafters on the same text"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSettings:
    """What a candidate has to show.

    Attributes:
        min_sessions: fewer held-out sessions let nothing pass.
        confidence: of every bound, one-sided.
        slice_margin: accepted tokens a round that a workload may lose.
        min_slice_sessions: workloads with fewer are judged together.
        num_resamples: of the bootstrap.
        seed: of it.

    Raises:
        ConfigError: a value is out of range.
    """

    min_sessions: int = 20
    confidence: float = 0.95
    slice_margin: float = 0.05
    min_slice_sessions: int = 8
    num_resamples: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("min_sessions", 2), ("min_slice_sessions", 2), ("num_resamples", 100)):
            if (value := getattr(self, name)) < least:
                raise ConfigError(f"{name} is {value}; give {least} or more")
        if not 0.5 < self.confidence < 1:  # noqa: PLR2004  half is no confidence
            raise ConfigError(f"confidence is {self.confidence}; give a share above 0.5, below 1")
        if not (math.isfinite(self.slice_margin) and self.slice_margin >= 0):
            raise ConfigError(f"slice_margin is {self.slice_margin}; give 0 or more tokens a round")


def gathered(
    keys: Sequence[tuple[str, str]], before: Sequence[ReplayCounts], after: Sequence[ReplayCounts]
) -> list[SessionReplay]:
    """Passages' counts added up by session and workload.

    Args:
        keys: (session, workload) of each passage.
        before: of the drafter that runs.
        after: of the candidate.
    """
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        places[key].append(i)
    return [
        SessionReplay(
            session=session,
            workload=workload,
            before=total(before[i] for i in at),
            after=total(after[i] for i in at),
        )
        for (session, workload), at in places.items()
    ]


def judge(
    sessions: Iterable[SessionReplay],
    settings: GateSettings,
    *,
    pause: Callable[[], None] = never,
) -> GateResult:
    """Whether the candidate passes, with all reasons if it does not.

    The order of the sessions does not matter. O(sessions x resamples).

    Args:
        sessions: what both do on each.
        settings: what is asked of it.
        pause: called between parts of the resamples; nothing depends on how many these are.
    """
    told = [it for it in sessions if it.before.num_rounds and it.after.num_rounds]
    table = _table(told)
    reasons: list[str] = []
    if len(table) < settings.min_sessions:
        reasons.append(
            f"only {len(table)} held-out sessions, {settings.min_sessions} are needed to tell"
        )
    change = _change(table, settings, pause)
    if not change.lower > 0:
        reasons.append(
            f"not surely better: {change.before:.3f} accepted tokens a round before, "
            f"{change.after:.3f} after, and at {settings.confidence:.0%} confidence the change is "
            f"at least {change.lower:+.3f} only"
        )
    elif (chance := chance_of_gain(table, settings, pause=pause)) > 1 - settings.confidence:
        reasons.append(
            f"not surely better: of drafters that do not differ, {chance:.1%} would gain "
            f"{change.after - change.before:.3f} accepted tokens a round on these sessions"
        )
    by_workload: dict[str, list[SessionReplay]] = defaultdict(list)
    for it in told:
        by_workload[it.workload].append(it)
    reasons += _worse_slices(by_workload, settings, pause)
    before, after = (total(getattr(it, name) for it in told) for name in ("before", "after"))
    return GateResult(
        passed=not reasons,
        num_sessions=len(table),
        num_rounds=before.num_rounds,
        before=change.before,
        after=change.after,
        lower_bound=change.lower,
        agreement_before=before.agreement,
        agreement_after=after.agreement,
        slices=tuple(_slice(name, by_workload[name]) for name in sorted(by_workload)),
        reasons=tuple(reasons),
    )


class _Change(NamedTuple):
    """Accepted tokens a round before and after, and the lower bound of the difference."""

    before: float
    after: float
    lower: float


def _worse_slices(
    by_workload: Mapping[str, list[SessionReplay]],
    settings: GateSettings,
    pause: Callable[[], None],
) -> list[str]:
    """Why workloads forbid the candidate: they lose more than the margin, and not by chance.

    Each is judged by its own sessions: few have to be worse nearly all of them, and what has too
    few is judged together. With several judged, each has to be the surer, so that the chance that
    noise forbids a good candidate does not grow with their number (Bonferroni).
    """
    judged: dict[str, npt.NDArray[np.int64]] = {}
    few: list[SessionReplay] = []
    for name, its in sorted(by_workload.items()):
        table = _table(its)
        if len(table) < settings.min_slice_sessions:
            few += its
        else:
            judged[f"workload {name or '(unnamed)'}"] = table
    if len(rest := _table(few)) >= settings.min_slice_sessions:
        judged[OTHERS] = rest
    reasons: list[str] = []
    for name, table in judged.items():
        (before,), (after,) = _lengths(table.sum(axis=0, keepdims=True))
        if after - before >= -settings.slice_margin:
            continue
        as_gain = table[:, [2, 3, 0, 1]]  # of the old one
        chance = chance_of_gain(as_gain, settings, pause=pause)
        if chance <= (1 - settings.confidence) / len(judged):
            reasons.append(
                f"{name} is worse: {before:.3f} accepted tokens a round before, {after:.3f} after "
                f"({len(table)} sessions); {settings.slice_margin:g} may be lost"
            )
    return reasons


def _table(sessions: Sequence[SessionReplay]) -> npt.NDArray[np.int64]:
    """Accepted tokens and rounds before, then after, a row for each session, by name."""
    rows: dict[str, npt.NDArray[np.int64]] = {}
    for it in sessions:
        row = np.array(
            [
                *(it.before.num_accepted, it.before.num_rounds),
                *(it.after.num_accepted, it.after.num_rounds),
            ]
        )
        rows[it.session] = rows.get(it.session, 0) + row
    return np.array([rows[name] for name in sorted(rows)], np.int64).reshape(-1, 4)


def _change(
    table: npt.NDArray[np.int64], settings: GateSettings, pause: Callable[[], None]
) -> _Change:
    """The change over all sessions of a table, with its one-sided bound.

    Sessions are drawn with replacement, each with what both drafters did on it, and the ratios of
    the sums compared (paired bootstrap). Percentiles of few sessions are too narrow: they are taken
    further out, by what Student's t has over the normal distribution (Hesterberg, "What teachers
    should know about the bootstrap", The American Statistician 69(4), 2015). Without two sessions
    the bound is 0, or what was found if that is less.
    """
    num = len(table)
    (before,), (after,) = _lengths(table.sum(axis=0, keepdims=True))
    if num < 2:  # noqa: PLR2004  one session says nothing of others
        return _Change(float(before), float(after), min(float(after - before), 0.0))
    rng = np.random.default_rng(settings.seed)
    drawn: list[npt.NDArray[np.float64]] = []
    for size in _parts(settings.num_resamples, num):
        # whole numbers, so that equal drafters give exactly equal sums
        old, new = _lengths(rng.multinomial(num, np.full(num, 1 / num), size=size) @ table)
        drawn.append(new - old)
        pause()
    lower = np.quantile(np.concatenate(drawn), expanded_tail(1 - settings.confidence, num))
    return _Change(float(before), float(after), float(lower))


def chance_of_gain(
    table: npt.NDArray[np.int64], settings: GateSettings, *, pause: Callable[[], None] = never
) -> float:
    """Share of drafters no better that gain as much on these sessions as the candidate.

    If it makes no difference which drafter is which, swapping both at random in each session gives
    what chance gives. Unlike the bootstrap this errs no more often than it says, however few
    sessions there are and however uneven they are (Fisher's randomisation test, paired).

    Args:
        table: int64 (sessions, 4): accepted tokens and rounds before, then after.
        settings: how many swaps are drawn, and from which seed.
        pause: called between parts of them.
    """
    swapped = table[:, [2, 3, 0, 1]] - table
    rng = np.random.default_rng(settings.seed)
    (old,), (new,) = _lengths(table.sum(axis=0, keepdims=True))
    num_as_good = 1  # what was found is one of the draws
    for size in _parts(settings.num_resamples, len(table)):
        flips = rng.integers(0, 2, (size, len(table)))
        before, after = _lengths(flips @ swapped + table.sum(axis=0))
        num_as_good += int((after - before >= new - old).sum())
        pause()
    return num_as_good / (settings.num_resamples + 1)


def _parts(num_resamples: int, num_sessions: int) -> Iterator[int]:
    """How many resamples are drawn at a time; the generator's stream does not depend on it."""
    size = max(1, PART_DRAWS // max(num_sessions, 1))
    for start in range(0, num_resamples, size):
        yield min(size, num_resamples - start)


def _lengths(
    sums: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    before, after = (sums[:, i] / np.maximum(sums[:, i + 1], 1) for i in (0, 2))
    return before, after


def expanded_tail(alpha: float, num: int) -> float:
    """Share of `num` sessions' resamples to leave out, so that a bound errs with `alpha`.

    Student's quantile is Fisher's and Cornish's series in 1 / (num - 1).
    """
    normal = NormalDist()
    z, nu = normal.inv_cdf(alpha), num - 1
    t = (
        z
        + (z**3 + z) / (4 * nu)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * nu**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * nu**3)
    )
    return normal.cdf(t * math.sqrt(num / nu))


def _slice(workload: str, sessions: Sequence[SessionReplay]) -> SliceResult:
    before, after = (total(getattr(it, name) for it in sessions) for name in ("before", "after"))
    return SliceResult(
        workload=workload,
        num_sessions=len({it.session for it in sessions}),
        before=before.accepted_length,
        after=after.accepted_length,
    )
