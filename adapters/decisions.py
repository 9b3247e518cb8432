"""What an engine decided for each request: numbers and a reason, without a word of what was said.

An engine counts into a `Tally` while it answers; when the request leaves, a `RequestDecisions` of
it goes into a ring. Both are found by the id that the proxy gave the request, and by nothing else:
nobody can ask which requests there were.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final

import msgspec

from paceline.adapters.identity import asked_id_of
from paceline.adapters.prediction import PredictionTally
from paceline.adapters.served_totals import UNKNOWN, Served, ServedTotals, Spent, Who
from paceline.caches import Source, TreeBatch

VERSION: Final = 1
MAX_FINISHED: Final = 4096
"""Finished requests of an engine that are remembered."""
DECISIONS_PATH: Final = "/paceline/requests/"
"""Where engines and proxies answer with a request's record: this, and its id."""
SOURCE_NAMES: Final = {
    Source.CONTEXT: "session",
    Source.WORKLOAD: "workload",
    Source.TENANT: "tenant",
    Source.CORPUS: "corpus",
    Source.MODEL: "model",
}
"""Sources as a record names them: memory's tiers as metrics do, and the model."""
POLICY: Final = "policy"
CLIENT: Final = "client"
OFF: Final = "off"
LENGTH: Final = "length"
FAILURE: Final = "failure"
JOURNAL: Final = "journal"
LIMITS: Final = (POLICY, CLIENT, OFF, LENGTH, FAILURE, JOURNAL)
"""What can limit a request's drafts, in the order in which a record names it.

The tenant's policy; the client's own ``draft_tokens`` or ``draft_sources``; nothing may draft at
all; the reply's or the model's last token was nearer than a draft is long; drafting failed; the
memory that is shared could not be reached, or was not read yet, when the request ended.
"""
MODEL: Final = int(Source.MODEL)


class SourceTokens(msgspec.Struct, frozen=True):
    """Tokens of one source: verified ones, and those of them that were right."""

    drafted: int = 0
    accepted: int = 0


class RequestDecisions(msgspec.Struct, frozen=True, kw_only=True):
    """The record of one request, over all its sequences (``n``, several prompts).

    Attributes:
        request_id: the id that the proxy gave it, or the engine's own of a request without one.
        is_finished: whether all of it that is known has left the engine.
        sequences: replies that are counted here.
        rounds: steps of the target after the first token of a reply.
        model_rounds: of those, the ones in which a model drafted for it.
        draft_tokens: drafted tokens that were verified.
        accepted_tokens: of those, the right ones.
        cut_tokens: drafted tokens that were not worth verifying.
        sources: the verified ones by source; sources without any are left out.
        drafts: verified drafts that were ``memory``'s, the ``model``'s, or of ``both``.
        limited_by: which of `LIMITS` kept drafts from being longer.
        accepted_prediction_tokens: tokens of the client's prediction that appeared in the replies.
        rejected_prediction_tokens: those that did not.
        arm: of the bandit that chose how to draft, "" where none did.
        reason: all of it in words.
        version: of the record.
    """

    request_id: str
    is_finished: bool
    sequences: int = 1
    rounds: int = 0
    model_rounds: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    cut_tokens: int = 0
    sources: dict[str, SourceTokens] = {}
    drafts: dict[str, int] = {}
    limited_by: tuple[str, ...] = ()
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0
    arm: str = ""
    reason: str = ""
    version: int = VERSION


class Tally:
    """Counts one sequence while it is answered; written by the engine's thread only.

    A reader on another thread may see a round half counted.

    Args:
        limited_by: of `LIMITS`, what is known at the beginning.

    Attributes:
        limits: of `LIMITS`, what limited it so far.
        arm: of the bandit that chooses for it.
        model_rounds: rounds in which a model drafted for it.
        num_cut: drafted tokens that were not worth verifying.
        prediction: of its reply; None without one.
        who: asks, for the totals.
        has_begun: whether it has said its first token.
    """

    __slots__ = (
        *("_drafts", "_served", "arm", "has_begun", "limits", "model_rounds", "num_cut"),
        *("prediction", "who"),
    )

    def __init__(self, limited_by: Iterable[str] = ()) -> None:
        self.limits = set(limited_by)
        self.arm = ""
        self.who: Who = ("", "")
        self.has_begun = False
        self.model_rounds = 0
        self.num_cut = 0
        self.prediction: PredictionTally | None = None
        self._served = Served(requests=1)
        self._drafts = [0, 0, 0]

    def begin(self) -> None:
        """The reply's first token is said: what it took was reading the prompt."""
        self.has_begun = True
        self._served.tokens += 1

    def note_round(self, sources: bytes, accepted: bytes, spent: Spent = UNKNOWN) -> None:
        """A round has ended. O(tokens), half a microsecond.

        Args:
            sources: `Source` of each drafted token that was verified, a byte each.
            accepted: of those that were right.
            spent: what the round is expected to have taken.
        """
        served = self._served
        served.rounds += 1
        num_said = len(accepted) + 1
        served.tokens += num_said
        served.round_seconds += spent[0]
        served.undrafted_seconds += spent[1] * num_said
        if not sources:
            return
        num_model = sources.count(MODEL)
        self._drafts[0 if not num_model else 1 if num_model == len(sources) else 2] += 1
        _count(served.drafted, sources)
        if accepted:
            _count(served.accepted, accepted)

    def record(self, request_id: str, *, is_finished: bool) -> RequestDecisions:
        """What has been counted, without a reason."""
        drafted, accepted = list(self._served.drafted), list(self._served.accepted)
        return RequestDecisions(
            request_id=request_id,
            is_finished=is_finished,
            rounds=self._served.rounds,
            model_rounds=self.model_rounds,
            draft_tokens=sum(drafted),
            accepted_tokens=sum(accepted),
            cut_tokens=self.num_cut,
            sources={
                name: SourceTokens(drafted[source], accepted[source])
                for source, name in SOURCE_NAMES.items()
                if drafted[source]
            },
            drafts=dict(zip(("memory", "model", "both"), self._drafts, strict=True)),
            limited_by=_in_order(set(self.limits)),
            accepted_prediction_tokens=self.prediction.num_accepted if self.prediction else 0,
            rejected_prediction_tokens=self.prediction.num_rejected if self.prediction else 0,
            arm=self.arm,
        )

    @property
    def served(self) -> Served:
        """What has been counted for the totals; not to be changed."""
        return self._served


class DecisionLog:
    """The tallies of an engine's open requests and the records of its latest finished ones.

    `find` and `served` may be called from any thread, everything else from the engine's.

    Args:
        max_finished: finished requests that are remembered; the oldest make room.

    Attributes:
        is_apart: whether the shared memory cannot be reached; asked once for each request that
            ends.
    """

    def __init__(self, *, max_finished: int = MAX_FINISHED) -> None:
        self.is_apart: Callable[[], bool] = lambda: False
        self._max_finished = max_finished
        self._open: dict[str, Tally] = {}
        self._open_of: dict[str, dict[str, Tally]] = {}
        self._finished: OrderedDict[str, RequestDecisions] = OrderedDict()
        self._issued: dict[str, bytes] = {}
        self._totals = ServedTotals()
        self._lock = threading.Lock()

    def open(self, engine_id: str, limited_by: Iterable[str] = ()) -> Tally:
        """Count a request from now on; the tally that there is if it is open already. O(1).

        Args:
            engine_id: the engine's id of it.
            limited_by: of `LIMITS`, what is known of it.
        """
        tally = self._open.get(engine_id)
        if tally is not None:
            return tally
        tally = Tally(limited_by)
        with self._lock:
            self._open[engine_id] = tally
            self._open_of.setdefault(asked_id_of(engine_id), {})[engine_id] = tally
        return tally

    def close(self, engine_id: str) -> None:
        """A request has left; unknown ones are ignored. O(1)."""
        tally = self._open.get(engine_id)
        if tally is None:
            return
        if self.is_apart():
            tally.limits.add(JOURNAL)
        self._issued.pop(engine_id, None)
        request_id = asked_id_of(engine_id)
        record = tally.record(request_id, is_finished=True)
        with self._lock:
            del self._open[engine_id]
            self._totals.add(tally.who, tally.served)
            others = self._open_of[request_id]
            del others[engine_id]
            if not others:
                del self._open_of[request_id]
            before = self._finished.pop(request_id, None)
            self._finished[request_id] = record if before is None else _joined([before, record])
            if len(self._finished) > self._max_finished:
                self._finished.popitem(last=False)

    def find(self, request_id: str) -> RequestDecisions | None:
        """The record of a request, also while it is answered; None if it is not known.

        O(its sequences).
        """
        with self._lock:
            finished = self._finished.get(request_id)
            records = [] if finished is None else [finished]
            running = self._open_of.get(request_id, {})
            records += [tally.record(request_id, is_finished=False) for tally in running.values()]
        if not records:
            return None
        joined = _joined(records)
        return msgspec.structs.replace(joined, reason=reason_of(joined))

    def served(self) -> Mapping[Who, Served]:
        """What was served so far, by tenant and workload, open requests included. O(open)."""
        with self._lock:
            return self._totals.read((tally.who, tally.served) for tally in self._open.values())

    def limit(self, engine_id: str, limit: str) -> None:
        """One of `LIMITS` has limited a request. O(1)."""
        tally = self._open.get(engine_id)
        if tally is not None:
            tally.limits.add(limit)

    def choose(self, engine_id: str, arm: str) -> None:
        """A bandit has chosen how to draft for a request; its last choice is told. O(1)."""
        tally = self._open.get(engine_id)
        if tally is not None:
            tally.arm = arm

    def issue(
        self,
        request_ids: Sequence[str],
        chains: TreeBatch,
        num_kept: Sequence[int],
        has_model: Sequence[bool] = (),
    ) -> None:
        """These chains are being verified; for engines that hear in the next round of what became.

        O(requests).

        Args:
            request_ids: the engine's.
            chains: of them, before what is not worth verifying was cut.
            num_kept: tokens of each that are verified.
            has_model: whether a model drafted for each; empty where none did.
        """
        sources = chains.source.tobytes()
        bounds = pairwise(chains.offsets.tolist())
        rows = zip(request_ids, bounds, num_kept, strict=True)
        for i, (request_id, (start, stop), num) in enumerate(rows):
            tally = self._open.get(request_id)
            if tally is None:
                continue
            tally.num_cut += stop - start - num
            if has_model and has_model[i]:
                tally.model_rounds += 1
            if num:
                self._issued[request_id] = sources[start : start + num]

    def settle(self, committed: Mapping[str, Sequence[int]], spent: Spent = UNKNOWN) -> None:
        """A round has ended with these tokens: the right ones of a chain, and one besides.

        Who has none is reading its prompt still. What was issued to others is taken for not
        verified. O(requests).

        Args:
            committed: by the engine's id.
            spent: what the round is expected to have taken.
        """
        issued, self._issued = self._issued, {}
        for request_id, tokens in committed.items():
            tally = self._open.get(request_id)
            if tally is None or not tokens:
                continue
            if tally.prediction is not None:
                tally.prediction.follow(tokens)
            if not tally.has_begun:  # the step that read the prompt's end
                tally.begin()
                continue
            sources = issued.get(request_id, b"")
            tally.note_round(sources, sources[: len(tokens) - 1], spent)

    def failed(self) -> None:
        """Drafting failed in a round, for whoever is open. O(open)."""
        self._issued = {}
        for tally in self._open.values():
            tally.limits.add(FAILURE)


def reason_of(record: RequestDecisions) -> str:
    """A record in words, of ASCII."""
    limits = [limit for limit in record.limited_by if limit != OFF]
    if OFF in record.limited_by:
        return f"nothing may draft: {' and '.join(limits) or 'the engine'} says so"
    if record.draft_tokens:
        who = " and ".join(name for name, num in _who(record) if num)
        num = sum(record.drafts.values())
        said = f"{who} drafted in {num} of {record.rounds} rounds; {record.accepted_tokens} of "
        said += f"{record.draft_tokens} tokens were right"
        if record.cut_tokens:
            said += f"; {record.cut_tokens} more were not worth verifying"
    elif FAILURE in limits:
        said = "drafting failed, or memory could not take the request"
    elif record.cut_tokens:
        said = f"none of {record.cut_tokens} drafted tokens was worth verifying"
    elif not record.rounds:
        said = "it ended, or is, before the first round that has drafts"
    else:
        said = f"nothing likely enough was known in {record.rounds} rounds"
    return f"{said}; limited by {', '.join(limits)}" if limits else said


def _who(record: RequestDecisions) -> list[tuple[str, int]]:
    both = record.drafts.get("both", 0)
    return [(name, record.drafts.get(name, 0) + both) for name in ("memory", "model")]


def _joined(records: Sequence[RequestDecisions]) -> RequestDecisions:
    """One record of several of a request's sequences, without a reason."""
    if len(records) == 1:
        return records[0]
    sources: dict[str, SourceTokens] = {}
    drafts: dict[str, int] = {}
    for record in records:
        for name, tokens in record.sources.items():
            known = sources.get(name, SourceTokens())
            sources[name] = SourceTokens(
                known.drafted + tokens.drafted, known.accepted + tokens.accepted
            )
        for name, num in record.drafts.items():
            drafts[name] = drafts.get(name, 0) + num
    return RequestDecisions(
        request_id=records[0].request_id,
        is_finished=all(record.is_finished for record in records),
        sequences=sum(record.sequences for record in records),
        rounds=sum(record.rounds for record in records),
        model_rounds=sum(record.model_rounds for record in records),
        draft_tokens=sum(record.draft_tokens for record in records),
        accepted_tokens=sum(record.accepted_tokens for record in records),
        cut_tokens=sum(record.cut_tokens for record in records),
        sources=sources,
        drafts=drafts,
        limited_by=_in_order({limit for record in records for limit in record.limited_by}),
        accepted_prediction_tokens=sum(r.accepted_prediction_tokens for r in records),
        rejected_prediction_tokens=sum(r.rejected_prediction_tokens for r in records),
        arm=", ".join(dict.fromkeys(record.arm for record in records if record.arm)),
    )


def _in_order(limits: set[str]) -> tuple[str, ...]:
    return tuple(limit for limit in LIMITS if limit in limits)


def _count(counts: list[int], sources: bytes) -> None:
    """Add what a draft is made of; most are of one source."""
    first = sources[0]
    num = sources.count(first)
    counts[first] += num
    if num != len(sources):
        for source in set(sources):
            if source != first:
                counts[source] += sources.count(source)
