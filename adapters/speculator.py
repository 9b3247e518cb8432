"""`Speculator`: the engine-neutral seam that every engine adapter drives.

An engine calls `begin` when it first sees a request, `commit` (or `observe`) with the tokens its
target accepted, `propose` for the next round's drafts, and `finish` when the request leaves.
Nothing here can change what
the target says: drafts are only ever verified by the engine.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from paceline.adapters.forgetting import Owner, SequenceOwners
from paceline.adapters.phrases import LoadedPhrases
from paceline.adapters.prediction import NOTHING, PredictedReplies, TokenArray
from paceline.adapters.record_keys import digest_of, session_key, writer_of
from paceline.adapters.request_info import RequestInfo
from paceline.caches import DraftIndex, SequenceRecord, Source, TokenTree, TreeBatch
from paceline.caches.journal_keeper import Quota
from paceline.caches.phrases import PhraseSet
from paceline.caches.tier_settings import NO_LIMITS, MemorySettings, TierLimits
from paceline.caches.tiers import NOWHERE, Route, TieredMemory, Writer
from paceline.caches.tombstones import Tombstone
from paceline.errors import DraftError

TokenIds = Sequence[int] | TokenArray


class RecordSink(Protocol):
    """Where finished sequences go (the journal): must not block."""

    def publish(self, record: SequenceRecord) -> None:
        """Take over one record; drop and count it rather than wait."""


class CorpusScopes(Protocol):
    """Where corpora come from (`CorpusFeed`): must not block."""

    def scope_id(self, owner: str) -> int:
        """Scope of the index whose readers draft from the owner's corpora."""


@dataclass(slots=True)
class _OpenRequest:
    info: RequestInfo
    handle: int
    write_scope: int
    started_at: float
    is_forgotten: bool = False

    @property
    def owner(self) -> Owner:
        """Whose its tokens are."""
        return Owner(self.info.tenant, self.info.scope, self.info.session)


class Speculator:
    """Drafts for the requests of one engine from its draft memory.

    Thread-safe; every call is O(tokens passed) plus index look-ups. `Speculator()` drafts from
    memory alone.

    Args:
        index: the draft memory, all of its scopes; a new one, as large as `memory` says, if None.
        memory: what the shared logs in it may hold and who reads which; defaults if None.
        journal: receives each finished sequence of a recording tenant; None keeps them in this
            process.
        origin: id of this process in its records; a random one if None.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        index: DraftIndex | None = None,
        *,
        memory: MemorySettings | None = None,
        journal: RecordSink | None = None,
        origin: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        settings = MemorySettings() if memory is None else memory
        if index is None:
            index = DraftIndex(max_session_tokens=settings.session.capacity)
        self.index = index
        self.memory = TieredMemory(index, settings)
        self.predictions = PredictedReplies(index)
        self.origin = uuid.uuid4().hex if origin is None else origin
        self.drafter_version = 0
        """Of the model drafter beside the memory, 0 for none or unknown; goes into records."""
        self._journal = journal
        self._corpora: CorpusScopes | None = None
        self._clock = clock
        self._open: dict[str, _OpenRequest] = {}
        self._recording: Counter[tuple[str, str]] = Counter()  # open, by scope and record id
        self._lock = threading.Lock()
        self._limits: dict[
            str, TierLimits
        ] = {}  # of tenants that have asked, by their last request
        self._owners = SequenceOwners(self.memory.settings.largest_log)
        self._phrases = LoadedPhrases(self.memory)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._open

    def __len__(self) -> int:
        """Number of open requests."""
        return len(self._open)

    def request_ids(self) -> list[str]:
        """Ids of the open requests, oldest first."""
        with self._lock:
            return list(self._open)

    def attach_journal(self, journal: RecordSink) -> None:
        """Publish what finishes from now on to `journal`, which often needs this object first."""
        self._journal = journal

    def attach_corpora(self, corpora: CorpusScopes) -> None:
        """Let requests that begin from now on draft from their owners' corpora."""
        self._corpora = corpora

    def begin(self, info: RequestInfo, prompt_ids: TokenIds, *, max_predicted: int = 0) -> None:
        """Open a request; indexes only what its session's earlier turns did not hold.

        Args:
            info: whose request it is.
            prompt_ids: its prompt.
            max_predicted: most tokens of its reply that `predictions` will be told.

        Raises:
            DraftError: a request of that id is open already.
        """
        if info.request_id in self._open:
            raise DraftError(
                f"request {info.request_id!r} is open already; finish it or use a new id"
            )
        prompt = _as_tokens(prompt_ids)
        started_at = self._clock()
        predicted = NOTHING
        if max_predicted:
            predicted = self.predictions.open(info.request_id, prompt, max_predicted)
        try:
            handle, write_scope = self._begin(info, prompt, started_at, predicted)
        except Exception:
            self.predictions.close(info.request_id)
            raise
        with self._lock:
            self._open[info.request_id] = _OpenRequest(info, handle, write_scope, started_at)
            if info.is_recorded:
                self._recording[info.scope, info.recorded_as] += 1

    def _begin(
        self, info: RequestInfo, prompt: TokenArray, started_at: float, predicted: TokenArray
    ) -> tuple[int, int]:
        """Its handle in the index and the log that takes its tokens."""
        if info.scope:
            self._limits[info.tenant] = info.limits
            with self.memory.route(writer_of(info), writes=info.record, now=started_at) as route:
                return self._open_context(info, prompt, route, predicted), route.write_scope
        return self._open_context(info, prompt, NOWHERE, predicted), NOWHERE.write_scope

    def num_tokens(self, request_id: str) -> int:
        """Tokens known of an open request, prompt included."""
        return self.index.num_tokens(self._request(request_id).handle)

    def commit(self, request_id: str, token_ids: TokenIds) -> None:
        """Append tokens that the target accepted. O(len(token_ids))."""
        self.commit_batch([request_id], [token_ids])

    def commit_batch(self, request_ids: Sequence[str], token_ids: Sequence[TokenIds]) -> None:
        """`commit` for several requests in one native call: token_ids[i] goes to request_ids[i]."""
        if not request_ids:
            return
        rows = [_as_tokens(row) for row in token_ids]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        self.index.commit(self._handles(request_ids), np.concatenate(rows), offsets)

    def observe(
        self,
        request_ids: Sequence[str],
        buffers: Sequence[TokenIds],
        num_tokens: Sequence[int],
    ) -> None:
        """Make each request's context `buffers[i][:num_tokens[i]]`, the engine's own view of it.

        The engine's buffer is the truth: deltas can be lost (a step in which drafting was skipped)
        and an engine may take tokens back. Only what lies past the known length is read, so the
        cost is O(new tokens); a buffer shorter than what is known truncates.
        """
        behind: list[str] = []
        deltas: list[TokenIds] = []
        for request_id, buffer, length in zip(request_ids, buffers, num_tokens, strict=True):
            handle = self._request(request_id).handle
            known = self.index.num_tokens(handle)
            if length < known:
                self.index.truncate(handle, length)
            elif length > known:
                behind.append(request_id)
                deltas.append(buffer[known:length])
        self.commit_batch(behind, deltas)

    def propose(
        self,
        request_ids: Sequence[str],
        *,
        max_tokens: int | Mapping[str, int] = 8,
        max_branches: int = 1,
    ) -> list[TokenTree]:
        """Drafts for a batch in one native call.

        Entry i belongs to request_ids[i] and may be empty.

        Args:
            request_ids: open requests, each at most once.
            max_tokens: most nodes for each tree (>= 0), one number for all or one for each request
                id.
            max_branches: most nodes that continue one node, 1 to 16; 1 drafts chains.
        """
        return self.propose_batch(
            request_ids, max_tokens=max_tokens, max_branches=max_branches
        ).trees()

    def propose_batch(
        self,
        request_ids: Sequence[str],
        *,
        max_tokens: int | Mapping[str, int] = 8,
        max_branches: int = 1,
    ) -> TreeBatch:
        """`propose` in flat arrays: a third of the time for a large batch."""
        if isinstance(max_tokens, int):
            limits = np.full(len(request_ids), max_tokens, np.int32)
        else:
            limits = np.array([max_tokens[request_id] for request_id in request_ids], np.int32)
        return TreeBatch(
            *self.index.propose(self._handles(request_ids), limits, max_branches=max_branches)
        )

    def propose_behind(
        self,
        request_ids: Sequence[str],
        token_ids: Sequence[TokenIds],
        *,
        max_tokens: Sequence[int],
    ) -> TreeBatch:
        """What would be drafted, as chains, if token_ids[i] were committed to request_ids[i] first.

        Nothing is committed, learned or counted; a request may be given several times.
        """
        rows = [_as_tokens(row) for row in token_ids]
        return TreeBatch(
            *self.index.propose_behind(
                self._handles(request_ids),
                np.array(max_tokens, np.int32),
                np.concatenate([np.empty(0, np.int32), *rows]),
                np.cumsum([0, *map(len, rows)], dtype=np.int64),
            )
        )

    def finish(self, request_id: str) -> None:
        """Close a request, keep its context for the session's next turn and publish what it added.

        Unknown ids are ignored: an engine may report an end twice.
        """
        with self._lock:
            request = self._open.get(request_id)
        if request is None:
            return
        finished_at = self._clock()
        info, log = request.info, request.write_scope
        if log >= 0:
            # before it leaves the table: a tombstone finds it in one or the other
            self._owners.note(
                log,
                request.owner,
                key=digest_of(info.recorded_as),
                begun_at=request.started_at,
                finished_at=finished_at,
                is_own=True,
            )
        with self._lock:
            if self._open.pop(request_id, None) is None:
                return
        num_tokens = self.index.num_tokens(request.handle)
        new_tokens, num_prompt = self.index.finish(request.handle, time=finished_at)
        self.predictions.close(request_id)
        if log >= 0:
            self.memory.wrote(log, time=finished_at)
            self._owners.grew(log, len(new_tokens))
        if not info.is_recorded:
            return
        if self._journal is not None and not request.is_forgotten and len(new_tokens):
            self._journal.publish(
                SequenceRecord(
                    request_id=info.recorded_as,
                    scope=info.scope,
                    tenant=info.tenant,
                    workload=info.workload,
                    session=info.session,
                    origin=self.origin,
                    token_ids=new_tokens,
                    num_prompt=num_prompt,
                    finished_at=finished_at,
                    started_at=request.started_at,
                    learn=info.learn,
                    drafter_group=info.drafter_group,
                    temperature=info.temperature,
                    drafter_version=self.drafter_version,
                    num_before=num_tokens - len(new_tokens),
                )
            )
        self._stop_recording(info)  # from here on the journal knows it

    def absorb(self, record: SequenceRecord) -> None:
        """Add what another engine served to this one's memory (the journal's reader calls this).

        What is open here is left out: its own end adds it, and the proxy, which records requests
        too, may be faster. O(tokens).
        """
        with self._lock:
            if (record.scope, record.request_id) in self._recording:
                return
        key = digest_of(record.request_id)
        writer = Writer(
            scope=record.scope,
            tenant=record.tenant,
            workload=record.workload,
            session=record.session or record.request_id,
        )
        log = self.memory.append(
            writer,
            record.token_ids,
            key=key,
            time=record.finished_at,
            num_prompt=record.num_prompt,
        )
        if log >= 0:
            # Tombstones come from the same thread as records: none falls in between.
            self._owners.note(
                log,
                Owner(record.tenant, record.scope, record.session),
                key=key,
                # a clock that runs ahead elsewhere must not hide from a tombstone what is here
                begun_at=min(record.begun_at, self._clock()),
                finished_at=record.finished_at,
                is_own=False,
            )
            self._owners.grew(log, len(record.token_ids))

    def absorb_again(self, record: SequenceRecord) -> None:
        """Make a record absorbed before the newest of its log. O(tokens + sequences of the log)."""
        self.memory.delete(record.scope, digest_of(record.request_id))
        self.absorb(record)

    def absorb_phrases(self, found: PhraseSet) -> None:
        """Draft from what a workload says most until the journal is read. O(tokens)."""
        self._phrases.add(found)

    def drop_phrases(self) -> None:
        """The journal is read: draft from what was said itself."""
        self._phrases.end()

    def forget_subject(self, tombstone: Tombstone) -> int:
        """Draft no more from what a tombstone covers, whoever served it.

        Requests of the subject that are open go on, but nothing of them is kept or published.
        Returns the number of sequences and open requests forgotten. See `SequenceOwners.erase`.
        """
        self._phrases.clear()  # counts of all sessions together: whose they are nobody can say
        with self._lock:
            covered = [
                request
                for request in self._open.values()
                if request.started_at <= tombstone.before and request.owner.falls_under(tombstone)
            ]
            for request in covered:
                request.is_forgotten = True
        for request in covered:
            if request.info.scope:
                self.memory.delete(request.info.scope, digest_of(request.info.recorded_as))
        return len(covered) + self._owners.erase(self.memory, tombstone)

    def forget(self, scope: str, request_id: str) -> int:
        """Draft no more from what one request of a scope said and read, wherever it was served.

        Returns the number of tokens forgotten here; a request that is open publishes what it has
        to the journal all the same. O(sequences of the scope).
        """
        return self.memory.delete(scope, digest_of(request_id))

    def forget_before(self, scope: str, time: float) -> int:
        """Draft no more from what finished in a scope before a Unix time; returns how many tokens.

        O(sequences of the scope + tokens forgotten).
        """
        return self.memory.evict_before(scope, time)

    def quota_of(self, tenant: str) -> Quota:
        """What a tenant may keep in the journal, as its last request here said, and the engine."""
        limits, settings = self._limits.get(tenant, NO_LIMITS), self.memory.settings
        retentions = (
            limits.retention_seconds,
            settings.workload.retention_seconds,
            settings.tenant.retention_seconds,
        )
        return Quota(
            max_tokens=limits.stored_tokens,
            retention_seconds=min((r for r in retentions if r is not None), default=None),
        )

    def expire(self) -> int:
        """Draft no more from what is older than its retention; returns how many tokens.

        Call it now and then, off the engine's step.
        """
        num_expired = self.memory.expire(self._clock())
        self._owners.keep({size.scope_id for size in self.memory.sizes()})
        return num_expired

    def stats(self) -> dict[str, int]:
        """Counters and sizes: `DraftIndex.stats` and `TieredMemory.stats`."""
        return self.index.stats() | self.memory.stats()

    def scope_stats(self, scope: str) -> Mapping[str, int]:
        """The same of one sharing scope and its requests; see `TieredMemory.scope_stats`."""
        return self.memory.scope_stats(scope)

    def close(self) -> None:
        """Finish every open request. The journal belongs to the caller."""
        for request_id in self.request_ids():
            self.finish(request_id)
        self.predictions.stop()

    def _open_context(
        self, info: RequestInfo, prompt_ids: TokenArray, route: Route, predicted: TokenArray
    ) -> int:
        read_scopes, read_sources = self._read_scopes(info, route)
        # last: what drafts learn of themselves goes by the first
        read_scopes = np.append(read_scopes, predicted)
        read_sources = np.append(read_sources, np.full_like(predicted, Source.WORKLOAD, np.uint8))
        handle, _ = self.index.begin(
            prompt_ids,
            read_scopes=read_scopes,
            read_sources=read_sources,
            write_scope=route.write_scope,
            session=session_key(info) if self.memory.settings.session.enabled else 0,
            key=digest_of(info.recorded_as),
        )
        return handle

    def _read_scopes(
        self, info: RequestInfo, route: Route
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
        """The logs of the request's tiers and what each is to it, then its owner's corpora."""
        sources = np.where(route.is_workload, Source.WORKLOAD, Source.TENANT).astype(np.uint8)
        if self._corpora is None or not info.owner or not info.limits.tenant:
            return route.read_scopes, sources
        corpora = self._corpora.scope_id(info.owner)
        return (
            np.append(route.read_scopes, np.int32(corpora)),
            np.append(sources, np.uint8(Source.TENANT)),
        )

    def _stop_recording(self, info: RequestInfo) -> None:
        name = info.scope, info.recorded_as
        with self._lock:
            self._recording[name] -= 1
            if not self._recording[name]:
                del self._recording[name]

    def _request(self, request_id: str) -> _OpenRequest:
        try:
            return self._open[request_id]
        except KeyError:
            raise DraftError(
                f"request {request_id!r} is not open ({len(self._open)} are); call begin first"
            ) from None

    def _handles(self, request_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        return np.array([self._request(request_id).handle for request_id in request_ids], np.int64)


def _as_tokens(token_ids: TokenIds) -> npt.NDArray[np.int32]:
    return np.ascontiguousarray(token_ids, dtype=np.int32)
