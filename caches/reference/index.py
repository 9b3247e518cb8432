"""`ReferenceIndex`: a brute-force `DraftIndex` in plain Python, the oracle of its tests.

Same methods, same drafts, from lists and linear scans: no hashing, no chains, no ring of slots, no
locks. It trusts its arguments; the native index's errors are tested by themselves. Never use it to
serve: a draft costs O(everything held).

The native index follows at most 16 * max_candidates links of a hash bucket, so that in a long log
it may miss a place that other grams of the bucket hide. Here nothing is missed. In a log of at most
16 * max_candidates tokens no bucket is longer than that: there the two agree exactly.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from paceline.caches.reference.calibration import Calibration
from paceline.caches.reference.drafting import Draft, Node, Trail, draft, follow, foresee, score
from paceline.caches.reference.lookup import MAX_MATCH, Log, Reading
from paceline.caches.reference.segment import ReferenceSegment
from paceline.caches.reference.shared_log import SharedLog
from paceline.caches.tree import Source

_MAX_CONTEXTS_PER_SESSION: Final = 4
_MIN_SLIDE: Final = 32

Reach = tuple[int, int, Source]
"""The scope that a request reads first, the one it writes, what the first is to it; -1: none."""
DraftArrays = tuple[
    npt.NDArray[np.int64],
    npt.NDArray[np.int32],
    npt.NDArray[np.int32],
    npt.NDArray[np.float32],
    npt.NDArray[np.uint8],
]
"""(offsets, token_ids, parent, prob, source) of a batch's trees."""
_COUNTED: Final = (Source.CONTEXT, Source.WORKLOAD, Source.TENANT, Source.CORPUS)


class _Counts:
    """Drafted and accepted tokens by source."""

    def __init__(self) -> None:
        self.drafted: Counter[Source] = Counter()
        self.accepted: Counter[Source] = Counter()

    def as_stats(self) -> dict[str, int]:
        """Named as the native index names them."""
        stats: dict[str, int] = {}
        for name, counts in (("drafted", self.drafted), ("accepted", self.accepted)):
            stats[name] = counts.total()
            stats |= {f"{name}_{it.name.lower()}": counts[it] for it in _COUNTED}
        return stats


@dataclass(frozen=True, slots=True)
class _Kept:
    """The context of a finished request."""

    session: int
    reach: Reach
    context: Log
    keys: tuple[int, ...]
    finished_at: float


@dataclass(slots=True)
class _Request:
    """An open request; token i >= seam of the engine's is token i + shift of the context."""

    session: int
    reach: Reach
    reads: dict[int, Source]
    calibration: Calibration
    context: Log
    seam: int
    shift: int
    new_begin: int
    prompt_end: int
    keys: tuple[int, ...]
    has_shared_prompt: bool = False
    is_erased: bool = False
    is_tainted: bool = False
    trail: Trail = field(default_factory=Trail)
    draft: Draft = field(default_factory=Draft)


class ReferenceIndex:
    """Oracle of `DraftIndex`; see there for what the arguments and results mean."""

    def __init__(
        self,
        *,
        shared_capacity: int = 4_194_304,
        max_sessions: int = 1024,
        max_session_tokens: int = 33_554_432,
        max_candidates: int = 12,
        min_probability: float = 0.1,
    ) -> None:
        self._shared_capacity = shared_capacity
        self._max_sessions = max_sessions
        self._max_session_tokens = max_session_tokens
        self._max_candidates = max_candidates
        self._min_probability = min_probability
        self._scope_ids: dict[str, int] = {}
        self._logs: dict[int, SharedLog] = {}
        self._num_scopes_ever = 0
        self._requests: dict[int, _Request] = {}
        self._num_requests_ever = 0
        self._kept: list[_Kept] = []
        self._calibrations: dict[Reach, Calibration] = {}
        self._segments: dict[int, list[ReferenceSegment]] = {}
        self._counts = _Counts()
        self._scope_counts: dict[int, _Counts] = {}

    def scope(self, name: str, *, capacity: int = 0) -> int:
        """Id of the scope called `name`, opened empty on first use."""
        if name not in self._scope_ids:
            self._scope_ids[name] = self._num_scopes_ever
            self._logs[self._num_scopes_ever] = SharedLog(capacity or self._shared_capacity)
            self._scope_counts[self._num_scopes_ever] = _Counts()
            self._num_scopes_ever += 1
        return self._scope_ids[name]

    def attach_corpora(self, scope_id: int, segments: Sequence[ReferenceSegment]) -> None:
        """Draft from these segments for the scope's readers, in place of those before."""
        self._segments[scope_id] = list(segments)

    def drop_scope(self, scope_id: int) -> int:
        """Forget everything of a scope; returns the number of tokens forgotten."""
        dropped = [kept for kept in self._kept if scope_id in kept.reach[:2]]
        self._kept = [kept for kept in self._kept if kept not in dropped]
        self._scope_ids = {n: known for n, known in self._scope_ids.items() if known != scope_id}
        self._calibrations = {
            reach: known for reach, known in self._calibrations.items() if scope_id not in reach[:2]
        }
        self._segments.pop(scope_id, None)
        del self._scope_counts[scope_id]
        num_shared = len(self._logs.pop(scope_id).tokens)
        return num_shared + sum(len(kept.context.tokens) for kept in dropped)

    def append_shared(
        self,
        scope_id: int,
        token_ids: npt.NDArray[np.int32],
        *,
        key: int = 0,
        time: float = 0.0,
        num_prompt: int = 0,
    ) -> None:
        """Add one sequence to a shared log."""
        self._logs[scope_id].append_keyed(token_ids.tolist(), num_prompt, key, time)

    def delete_sequence(self, scope_id: int, key: int) -> int:
        """Forget a sequence and the contexts that may hold it; returns how many tokens."""
        for request in self._requests.values():
            if scope_id in request.reach[:2]:
                request.is_erased |= request.keys[-1] == key
                request.is_tainted |= key in request.keys
        dropped = [kept for kept in self._kept if scope_id in kept.reach[:2] and key in kept.keys]
        self._kept = [kept for kept in self._kept if kept not in dropped]
        return self._logs[scope_id].erase(key) + sum(len(kept.context.tokens) for kept in dropped)

    def evict_before(self, scope_id: int, time: float) -> int:
        """Forget sequences and kept contexts of earlier times; returns how many tokens."""
        num_shared = self._logs[scope_id].evict_before(time)
        return num_shared + self._drop_before(time, lambda kept: scope_id in kept.reach[:2])

    def evict_contexts_before(self, time: float) -> int:
        """Forget kept contexts of earlier times; returns how many tokens."""
        return self._drop_before(time, lambda _: True)

    def begin(
        self,
        prompt_ids: npt.NDArray[np.int32],
        *,
        read_scopes: npt.NDArray[np.int32],
        write_scope: int = -1,
        session: int = 0,
        key: int = 0,
        share_prompt: bool = False,
        time: float = 0.0,
        read_sources: npt.NDArray[np.uint8] | None = None,
    ) -> tuple[int, int]:
        """Open a request; returns (handle, num_reused)."""
        sources = [Source.WORKLOAD] * len(read_scopes)
        if read_sources is not None:
            sources = [Source(source) for source in read_sources.tolist()]
        reads: dict[int, Source] = {}
        for scope_id, source in zip(read_scopes.tolist(), sources, strict=True):
            reads.setdefault(scope_id, source)
        first, what = next(iter(reads.items()), (-1, Source.WORKLOAD))
        reach = first, write_scope, what
        prompt = prompt_ids.tolist()
        context, num_prefix, num_slid, keys = self._take(session, reach, prompt)
        num_reused = num_prefix + num_slid
        if not num_slid:
            context.keep_first(num_prefix)
        new_begin = context.end
        context.append(prompt[num_reused:], said=False)
        self._num_requests_ever += 1
        self._requests[self._num_requests_ever] = _Request(
            session,
            reach,
            reads,
            Calibration()
            if reach[:2] == (-1, -1)
            else self._calibrations.setdefault(reach, Calibration()),
            context,
            seam=num_prefix if num_slid else 0,
            shift=new_begin - num_reused,
            new_begin=new_begin,
            prompt_end=context.end,
            keys=(*keys, key),
            has_shared_prompt=share_prompt and write_scope != -1,
        )
        if share_prompt and write_scope != -1:
            new_prompt = prompt[num_reused:]
            self._logs[write_scope].append_keyed(new_prompt, len(new_prompt), key, time)
        return self._num_requests_ever, num_reused

    def commit(
        self,
        handles: npt.NDArray[np.int64],
        token_ids: npt.NDArray[np.int32],
        offsets: npt.NDArray[np.int64],
    ) -> None:
        """Append accepted tokens, after scoring each request's last draft against them."""
        for i, handle in enumerate(handles.tolist()):
            request = self._requests[handle]
            committed = token_ids[offsets[i] : offsets[i + 1]].tolist()
            if not committed:
                continue
            accepted = score(request.draft, committed, request.calibration, request.trail)
            for counts in self._counters_of(request):
                counts.accepted.update(accepted)
            request.context.append(committed, said=True)
            follow(request.trail, self._reading_of(request).logs, committed)

    def truncate(self, handle: int, num_tokens: int) -> None:
        """Drop the context's tokens from `num_tokens` on."""
        request = self._requests[handle]
        if num_tokens < request.seam:
            request.shift = 0
        request.context.keep_first(num_tokens + request.shift)
        request.new_begin = min(request.new_begin, request.context.end)
        request.prompt_end = min(request.prompt_end, request.context.end)
        request.trail = Trail()
        request.draft = Draft()

    def num_tokens(self, handle: int) -> int:
        """Tokens in the request's context, prompt included."""
        request = self._requests[handle]
        return request.context.end - request.shift

    def propose(
        self,
        handles: npt.NDArray[np.int64],
        max_tokens: npt.NDArray[np.int32],
        *,
        max_branches: int = 1,
    ) -> DraftArrays:
        """Draft for a batch; returns (offsets, token_ids, parent, prob, source)."""
        issued = []
        for handle, most in zip(handles.tolist(), max_tokens.tolist(), strict=True):
            request = self._requests[handle]
            request.draft = draft(
                self._reading_of(request),
                request.trail,
                request.calibration,
                max_tokens=most,
                max_branches=max_branches,
                max_candidates=self._max_candidates,
                min_probability=self._min_probability,
            )
            issued.append(request.draft.issued)
            for counts in self._counters_of(request):
                counts.drafted.update(node.source for node in request.draft.issued)
        return _as_arrays(issued)

    def propose_behind(
        self,
        handles: npt.NDArray[np.int64],
        max_tokens: npt.NDArray[np.int32],
        token_ids: npt.NDArray[np.int32],
        offsets: npt.NDArray[np.int64],
        *,
        max_branches: int = 1,
    ) -> DraftArrays:
        """What `propose` would return if these tokens were committed first."""
        issued = []
        for i, (handle, most) in enumerate(zip(handles.tolist(), max_tokens.tolist(), strict=True)):
            request = self._requests[handle]
            supposed = token_ids[offsets[i] : offsets[i + 1]].tolist()
            num_tokens = len(request.context.tokens)
            request.context.append(supposed, said=True)
            reading = self._reading_of(request)
            made = draft(
                reading,
                foresee(request.draft, request.trail, reading.logs, supposed),
                request.calibration,
                max_tokens=most,
                max_branches=max_branches,
                max_candidates=self._max_candidates,
                min_probability=self._min_probability,
            )
            request.context.keep_first(num_tokens)
            issued.append(made.issued)
        return _as_arrays(issued)

    def finish(self, handle: int, *, time: float = 0.0) -> tuple[npt.NDArray[np.int32], int]:
        """Close a request; returns (new_tokens, num_prompt)."""
        request = self._requests.pop(handle)
        new_tokens = request.context.tokens[request.new_begin :]
        write_scope = request.reach[1]
        if write_scope in self._logs and not request.is_erased:
            num_prompt = request.prompt_end - request.new_begin
            num_replied = len(new_tokens) - num_prompt
            unshared = new_tokens
            if request.has_shared_prompt:
                unshared = new_tokens[max(0, num_prompt - MAX_MATCH) :] if num_replied else []
            num_read = len(unshared) - num_replied
            self._logs[write_scope].append_keyed(unshared, num_read, request.keys[-1], time)
        if not request.is_tainted and all(
            scope_id in self._logs or scope_id == -1 for scope_id in request.reach[:2]
        ):
            self._keep(_Kept(request.session, request.reach, request.context, request.keys, time))
        return np.array(new_tokens, np.int32), request.prompt_end - request.new_begin

    def restored(self) -> ReferenceIndex:
        """A new index, with nothing open, as if made from a snapshot of this one."""
        renamed = {old: new for new, old in enumerate(sorted(self._logs))} | {-1: -1}

        def reach_of(reach: Reach) -> Reach:
            return renamed[reach[0]], renamed[reach[1]], reach[2]

        made = ReferenceIndex(
            shared_capacity=self._shared_capacity,
            max_sessions=self._max_sessions,
            max_session_tokens=self._max_session_tokens,
            max_candidates=self._max_candidates,
            min_probability=self._min_probability,
        )
        made._scope_ids = {name: renamed[old] for name, old in self._scope_ids.items()}
        made._logs = {renamed[old]: log.copied(log.capacity) for old, log in self._logs.items()}
        made._scope_counts = {scope_id: _Counts() for scope_id in made._logs}
        made._num_scopes_ever = len(self._logs)
        made._kept = [
            replace(kept, reach=reach_of(kept.reach), context=deepcopy(kept.context))
            for kept in self._kept
        ]
        made._calibrations = {
            reach_of(reach): deepcopy(known) for reach, known in self._calibrations.items()
        }
        return made

    def stats(self) -> dict[str, int]:
        """Counters and sizes; "bytes" and "corpus_tokens" are the native index's own affair."""
        contexts = [kept.context.tokens for kept in self._kept]
        contexts += [request.context.tokens for request in self._requests.values()]
        return {
            "requests": len(self._requests),
            "sessions": len(self._kept),
            "scopes": len(self._logs),
            "sequences": sum(log.num_sequences for log in self._logs.values()),
            "shared_tokens": sum(len(log.tokens) for log in self._logs.values()),
            "context_tokens": sum(map(len, contexts)),
            "segments": sum(map(len, self._segments.values())),
            **self._counts.as_stats(),
        }

    def scope_stats(self, scope_id: int) -> dict[str, int]:
        """Counters and sizes of one scope, without those that `stats` leaves out."""
        return {
            "sequences": self._logs[scope_id].num_sequences,
            "shared_tokens": len(self._logs[scope_id].tokens),
            "segments": len(self._segments.get(scope_id, ())),
            **self._scope_counts[scope_id].as_stats(),
        }

    def _reading_of(self, request: _Request) -> Reading:
        reads = request.reads
        segments = [it for scope_id in reads for it in self._segments.get(scope_id, ())]
        return Reading(
            [request.context, *map(self._logs.get, reads)],
            [Source.CONTEXT, *reads.values()],
            [it for i, it in enumerate(segments) if all(it is not other for other in segments[:i])],
        )

    def _counters_of(self, request: _Request) -> list[_Counts]:
        first = request.reach[0]
        return [self._counts, *([self._scope_counts[first]] if first in self._logs else [])]

    def _take(
        self, session: int, reach: Reach, prompt: list[int]
    ) -> tuple[Log, int, int, tuple[int, ...]]:
        """Context that the prompt continues best, how it lies on it (prefix, slid), its keys."""
        best: tuple[_Kept, int, int] | None = None
        for kept in self._kept:
            if session == 0 or (kept.session, kept.reach) != (session, reach):
                continue
            num_prefix, num_slid = _overlap(kept.context.tokens, prompt)
            if best is None or num_prefix + num_slid >= best[1] + best[2]:
                best = kept, num_prefix, num_slid
        if best is None:
            return Log(), 0, 0, ()
        kept, num_prefix, num_slid = best
        if num_slid == 0 and num_prefix * 2 < min(len(prompt), len(kept.context.tokens)):
            return Log(), 0, 0, ()
        self._kept = [other for other in self._kept if other is not kept]
        return kept.context, num_prefix, num_slid, kept.keys

    def _drop_before(self, time: float, is_meant: Callable[[_Kept], bool]) -> int:
        old = [kept for kept in self._kept if kept.finished_at < time and is_meant(kept)]
        self._kept = [kept for kept in self._kept if kept not in old]
        return sum(len(kept.context.tokens) for kept in old)

    def _keep(self, finished: _Kept) -> None:
        if finished.session == 0 or self._max_sessions == 0 or not finished.context.tokens:
            return
        self._kept.append(finished)
        own = [kept for kept in self._kept if kept.session == finished.session]
        if len(own) > _MAX_CONTEXTS_PER_SESSION:
            self._kept = [kept for kept in self._kept if kept is not own[0]]
        while (
            len(self._kept) > self._max_sessions
            or sum(len(kept.context.tokens) for kept in self._kept) > self._max_session_tokens
        ):
            del self._kept[0]


def _as_arrays(issued: Sequence[Sequence[Node]]) -> DraftArrays:
    nodes = [node for tree in issued for node in tree]
    return (
        np.cumsum([0, *map(len, issued)], dtype=np.int64),
        np.array([node.token for node in nodes], np.int32),
        np.array([n.parent.issued if n.parent else -1 for n in nodes], np.int32),
        np.array([node.probability for node in nodes], np.float32),
        np.array([node.source for node in nodes], np.uint8),
    )


def _overlap(context: Sequence[int], prompt: Sequence[int]) -> tuple[int, int]:
    """(num_prefix, num_slid): the prompt's first tokens, and those after them, on a context."""
    shorter = min(len(context), len(prompt))
    num_prefix = next((i for i in range(shorter) if context[i] != prompt[i]), shorter)
    rest = prompt[num_prefix:]
    for start in range(num_prefix, len(context)):
        num_left = len(context) - start
        if _MIN_SLIDE <= num_left <= len(rest) and context[start:] == rest[:num_left]:
            return num_prefix, num_left
    return num_prefix, 0
