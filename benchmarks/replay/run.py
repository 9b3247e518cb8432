"""Replaying one scope with one drafter, and keeping what came out."""

from __future__ import annotations

import gc
import hashlib
import os
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import msgspec

from paceline.benchmarks.replay.base import (
    MAX_DRAFT_TOKENS,
    Draft,
    Drafter,
    TokenIds,
    accepted_depths,
    num_accepted,
)
from paceline.benchmarks.replay.counts import CALLS, Counts
from paceline.benchmarks.replay.episodes import Scope
from paceline.errors import DraftError

RESULT_FORMAT: Final = 1


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """One recorded request and its reply.

    Attributes:
        request_id: unique within the scope.
        session_id: session of its episode.
        scope: name of the scope.
        episode: number of its episode in the scope.
        prompt_ids: int32, (n,): what was asked, cut to the protocol's length.
        output_ids: what was replied, its end-of-turn token included; never empty.
        subset: which half it belongs to and whether its task was seen before.
        workload: kind of work within the scope.
    """

    request_id: int
    session_id: str
    scope: str
    episode: int
    prompt_ids: TokenIds
    output_ids: list[int]
    subset: str
    workload: str = ""


@runtime_checkable
class SeesFuture(Protocol):
    """An oracle: a drafter that is shown a scope's requests before they are replayed."""

    def prepare_scope(self, scope: Scope) -> None:
        """Look at everything that will be asked and said."""


@runtime_checkable
class KnowsWorkloads(Protocol):
    """A drafter that treats kinds of work apart."""

    def name_workload(self, workload: str) -> None:
        """Told before each request."""


@runtime_checkable
class RunsModel(Protocol):
    """A drafter that runs a model."""

    @property
    def num_passes(self) -> int:
        """Forward passes so far."""


class UnitResult(msgspec.Struct, kw_only=True):
    """What one drafter did on one scope.

    Attributes:
        format: `RESULT_FORMAT` of the program that wrote it.
        drafter: name of the drafter.
        source: name of the trace file.
        model: who said it.
        counts: totals by subset (half and whether the task was seen).
        num_bytes: bytes that the drafter held at the end; None where it cannot say.
        num_tokens: tokens remembered in them.
        seconds: how long the replay took.
    """

    format: int = RESULT_FORMAT
    drafter: str
    source: str
    model: str
    counts: dict[str, Counts]
    num_bytes: int | None = None
    num_tokens: int | None = None
    seconds: float = 0.0


def requests_of(scope: Scope) -> Iterator[Request]:
    """The scope's requests in the order they are replayed."""
    request_id = 0
    for number, episode in enumerate(scope.episodes):
        half = "reporting" if episode.reporting else "tuning"
        subset = f"{half}/{'seen' if episode.seen else 'new'}"
        workload = episode.workload
        for turn in episode.turns:
            request_id += 1
            yield Request(
                request_id=request_id,
                session_id=episode.session_id,
                scope=scope.name,
                workload=workload,
                episode=number,
                prompt_ids=episode.prompt(turn),
                output_ids=episode.output(turn).tolist(),
                subset=subset,
            )


def replay_scope(
    drafter: Drafter,
    name: str,
    scope: Scope,
    *,
    clock: Callable[[], int] = time.perf_counter_ns,
    advance: Callable[[int], None] = lambda _: None,
) -> UnitResult:
    """Replay all requests of a scope, one at a time.

    Args:
        drafter: has not met the scope before.
        name: what to call the drafter.
        scope: what to replay.
        clock: nanoseconds, for the duration of the drafter's calls.
        advance: told how many output tokens have been replayed since the last call.
    """
    began = time.monotonic()
    if isinstance(drafter, SeesFuture):
        drafter.prepare_scope(scope)
    tallies: dict[str, Tally] = {}
    with _no_collections():
        for request in requests_of(scope):
            tally = tallies.setdefault(request.subset, Tally(clock))
            tally.replay(drafter, request)
            advance(len(request.output_ids))
    memory = drafter.memory()
    return UnitResult(
        drafter=name,
        source=scope.source,
        model=scope.model,
        counts={subset: tally.counts() for subset, tally in tallies.items()},
        num_bytes=memory.num_bytes if memory else None,
        num_tokens=memory.num_tokens if memory else None,
        seconds=time.monotonic() - began,
    )


@contextmanager
def _no_collections() -> Iterator[None]:
    """Keep the garbage collector from walking a drafter's millions of objects in a timed call.

    Nothing here makes reference cycles.
    """
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@dataclass(slots=True)
class Tally:
    """Counting while requests are replayed.

    Attributes:
        clock: nanoseconds.
        totals: what has been counted; durations are added by `counts`.
        durations: of each of the drafter's calls, in nanoseconds.
    """

    clock: Callable[[], int]
    totals: Counts = field(default_factory=Counts)
    durations: dict[str, array[int]] = field(
        default_factory=lambda: {call: array("q") for call in CALLS}
    )

    def replay(self, drafter: Drafter, request: Request) -> None:
        """One request: its prefill's token, then steps until the reply is written."""
        clock, totals = self.clock, self.totals
        passes_before = drafter.num_passes if isinstance(drafter, RunsModel) else 0
        request_id, output_ids = request.request_id, request.output_ids
        if isinstance(drafter, KnowsWorkloads):
            drafter.name_workload(request.workload)
        began = clock()
        drafter.start(request_id, request.session_id, request.scope, request.prompt_ids)
        self.durations["start"].append(clock() - began)
        self._commit(drafter, request_id, output_ids[:1])
        position = 1
        while position < len(output_ids):
            began = clock()
            draft = drafter.propose(request_id, MAX_DRAFT_TOKENS)
            self.durations["propose"].append(clock() - began)
            accepted = self._verify(draft, output_ids, position)
            committed = output_ids[position : position + accepted + 1]
            self._commit(drafter, request_id, committed)
            position += len(committed)
            totals.steps += 1
            totals.committed += len(committed)
        began = clock()
        drafter.finish(request_id)
        self.durations["finish"].append(clock() - began)
        if isinstance(drafter, RunsModel):
            totals.passes += drafter.num_passes - passes_before
        totals.requests += 1
        totals.output_tokens += len(output_ids)

    def counts(self) -> Counts:
        """Everything counted so far."""
        for call, durations in self.durations.items():
            self.totals.timings[call].add_durations(durations)
            del durations[:]
        return self.totals

    def _commit(self, drafter: Drafter, request_id: int, token_ids: list[int]) -> None:
        began = self.clock()
        drafter.commit(request_id, token_ids)
        self.durations["commit"].append(self.clock() - began)

    def _verify(self, draft: Draft, output_ids: Sequence[int], position: int) -> int:
        if len(draft.token_ids) > MAX_DRAFT_TOKENS:
            raise DraftError(
                f"the draft has {len(draft.token_ids)} tokens, at most {MAX_DRAFT_TOKENS} may be "
                "verified a step"
            )
        accepted = num_accepted(draft, output_ids, position)
        self.totals.drafted += len(draft.token_ids)
        self.totals.accepted += accepted
        if draft.prob is not None:
            self._score(draft, output_ids, position)
        return accepted

    def _score(self, draft: Draft, output_ids: Sequence[int], position: int) -> None:
        assert draft.prob is not None
        depths = accepted_depths(draft, output_ids, position)
        parents = draft.parent or range(-1, len(depths) - 1)
        for depth, parent, prob in zip(depths, parents, draft.prob, strict=True):
            if parent < 0 or depths[parent]:
                self.totals.reliability.add(prob, accepted=depth > 0)


@dataclass(frozen=True, slots=True)
class ResultStore:
    """Finished units in a folder, so that none is run twice.

    Attributes:
        folder: made when something is kept.
    """

    folder: Path

    def load(self, key: str) -> UnitResult | None:
        """The unit kept under `key`; None if there is none or it is of another format."""
        try:
            result = msgspec.json.decode(self._file(key).read_bytes(), type=UnitResult)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        return result if result.format == RESULT_FORMAT else None

    def save(self, key: str, result: UnitResult) -> None:
        """Keep a unit; whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self._file(key).with_suffix(f".{os.getpid()}.part")
        part.write_bytes(msgspec.json.encode(result))
        part.replace(self._file(key))

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.json"


def unit_key(*settings: str) -> str:
    """Name of what depends on all of `settings`."""
    return hashlib.sha256("\0".join(settings).encode()).hexdigest()[:32]
