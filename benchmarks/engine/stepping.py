"""What one step of a trace-forced engine is to want, and what it amounts to; plain numbers only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from paceline.benchmarks.engine.records import Step
from paceline.benchmarks.replay.base import Draft, num_accepted

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Row:
    """One request in one step.

    Attributes:
        request_id: whose row it is.
        reply: the recorded reply; None if nothing is forced upon the request.
        position: output tokens it has already.
        num_scheduled: tokens the step computes for it.
        draft_ids: the drafted ones among them.
        parents: of each, its parent's index among them or -1; None for a chain.
        is_partial: whether the step ends inside its prompt; what is sampled is thrown away.
    """

    request_id: str
    reply: Sequence[int] | None
    position: int
    num_scheduled: int
    draft_ids: Sequence[int] = ()
    parents: Sequence[int] | None = None
    is_partial: bool = False


def forced_tokens(rows: Iterable[Row]) -> tuple[list[int], list[int]]:
    """Which logits to change, and the token each is to want.

    A request has one row of logits for each drafted token and one for the token after them; the
    rows of a step lie one after the other. Rows past a reply's end stay as they are: the engine
    ends the request there.

    Returns:
        (indices of rows of logits, token ids), of equal length.
    """
    indices: list[int] = []
    token_ids: list[int] = []
    base = 0
    for row in rows:
        num_logits = len(row.draft_ids) + 1
        if row.reply is not None:
            wanted = row.reply[row.position : row.position + num_logits]
            indices.extend(range(base, base + len(wanted)))
            token_ids.extend(wanted)
        base += num_logits
    return indices, token_ids


class StepLog:
    """Collects the steps of one engine.

    Args:
        clock: seconds; only differences count.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._steps: list[Step] = []
        self._start = 0.0
        self._rows: tuple[Row, ...] = ()
        self._draft_seconds = 0.0
        self._force_seconds = 0.0
        self._last_end = 0.0
        self._last_ids: frozenset[str] = frozenset()

    def begin(self) -> None:
        """A step begins; one that never ends is forgotten, not so its drafting."""
        self._start = self._clock()
        self._rows = ()

    def observe(self, rows: Iterable[Row]) -> None:
        """What the step holds."""
        self._rows = tuple(rows)

    def drafting(self, call: Callable[P, T]) -> Callable[P, T]:
        """`call`, with the time it takes counted as drafting."""

        def timed(*args: P.args, **kwargs: P.kwargs) -> T:
            started = self._clock()
            try:
                return call(*args, **kwargs)
            finally:
                self._draft_seconds += self._clock() - started

        return timed

    def add_forcing(self, seconds: float) -> None:
        """Count time spent on forcing."""
        self._force_seconds += seconds

    def end(self) -> None:
        """The step has sampled and drafted. O(its rows)."""
        now = self._clock()
        rows = self._rows
        ids = frozenset(row.request_id for row in rows)
        goes_on = bool(ids & self._last_ids)
        self._steps.append(
            summarise(
                rows,
                start=self._start,
                end=now,
                round_seconds=now - (self._last_end if goes_on else self._start),
                draft_seconds=self._draft_seconds,
                force_seconds=self._force_seconds,
            )
        )
        self._draft_seconds = self._force_seconds = 0.0
        self._last_end, self._last_ids = now, ids

    def take(self) -> list[Step]:
        """The steps since the last call."""
        taken, self._steps = self._steps, []
        return taken


def summarise(
    rows: Sequence[Row],
    *,
    start: float,
    end: float,
    round_seconds: float,
    draft_seconds: float,
    force_seconds: float,
) -> Step:
    """The step that computed `rows`.

    A request that was preempted reads its prompt and its own words again: those count as prefill.
    """
    decoding = [row for row in rows if row.position > 0 and not row.is_partial]
    accepted = decoded = verified = 0
    for row in decoding:
        verified += len(row.draft_ids) + 1
        if row.reply is not None:
            matched = num_accepted(Draft(row.draft_ids, row.parents), row.reply, row.position)
            accepted += matched
            decoded += min(matched + 1, len(row.reply) - row.position)
    return Step(
        start=start,
        end=end,
        round_seconds=round_seconds,
        num_requests=len(rows),
        num_prefill=sum(row.num_scheduled for row in rows) - verified,
        num_decoding=len(decoding),
        num_verified=verified,
        num_drafted=sum(len(row.draft_ids) for row in decoding),
        num_accepted=accepted,
        num_decoded=decoded,
        draft_seconds=draft_seconds,
        force_seconds=force_seconds,
    )
