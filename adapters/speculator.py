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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Protocol
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from paceline.caches import DraftIndex, SequenceRecord, Source, TokenTree, TreeBatch
from paceline.caches.tier_settings import NO_LIMITS, MemorySettings, TierLimits
from paceline.caches.tiers import NOWHERE, Route, TieredMemory, Writer
from paceline.errors import DraftError

GLOBAL_SCOPE: Final = "global"
"""Sharing scope of every tenant that its policy lets share with all others that do."""

TokenIds = Sequence[int] | npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestInfo:
    """Who asks: what a request's drafts may be drawn from and where its tokens go.

    Attributes:
        request_id: the engine's id of the request, unique while it is open.
        tenant: who pays; "" when nobody vouched for the request, which then shares with no one.
        workload: name of the kind of work, "" if unknown.
        session: id of the agent's conversation, "" if unknown.
        group: sharing group the tenant belongs to, "" for the tenant alone.
        is_global: whether the tenant shares with every other tenant that does; then it has no
            group.
        adapter: LoRA adapter that answers, "" for the bare target; adapters share nothing with each
            other.
        record: False leaves nothing of the request's tokens behind: not in shared memory, not in
            the journal, not in a context for its session's next turn.
        limits: what the tenant's policy keeps its memory to.
    """

    request_id: str
    tenant: str = "local"
    workload: str = ""
    session: str = ""
    group: str = ""
    is_global: bool = False
    adapter: str = ""
    record: bool = True
    limits: TierLimits = NO_LIMITS

    @property
    def owner(self) -> str:
        """Whose corpora the request is drafted from, "" for nobody's.

        The sharing scope without its adapter: a corpus is text, whichever adapter reads it.
        """
        if not self.tenant:
            return ""
        if self.group:
            return f"group:{quote(self.group, safe='')}"
        return GLOBAL_SCOPE if self.is_global else f"tenant:{quote(self.tenant, safe='')}"

    @property
    def scope(self) -> str:
        """Name of the sharing scope, "" for none; different for different scopes.

        Nothing of one scope reaches a draft of another.
        """
        if not (self.owner and self.adapter):
            return self.owner
        return f"{self.owner}/adapter:{quote(self.adapter, safe='')}"


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


class Speculator:
    """Drafts for the requests of one engine from its draft memory.

    Thread-safe; every call is O(tokens passed) plus index look-ups. `Speculator()` drafts from
    memory alone.

    Args:
        index: the draft memory, all of its scopes; a new one if None.
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
        self.index = DraftIndex() if index is None else index
        self.memory = TieredMemory(self.index, memory)
        self.origin = uuid.uuid4().hex if origin is None else origin
        self._journal = journal
        self._corpora: CorpusScopes | None = None
        self._clock = clock
        self._open: dict[str, _OpenRequest] = {}
        self._lock = threading.Lock()

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

    def begin(self, info: RequestInfo, prompt_ids: TokenIds) -> None:
        """Open a request; indexes only what its session's earlier turns did not hold.

        Raises:
            DraftError: a request of that id is open already.
        """
        if info.request_id in self._open:
            raise DraftError(
                f"request {info.request_id!r} is open already; finish it or use a new id"
            )
        prompt = _as_tokens(prompt_ids)
        if info.scope:
            with self.memory.route(_writer(info), writes=info.record, now=self._clock()) as route:
                handle = self._open_context(info, prompt, route)
        else:
            route = NOWHERE
            handle = self._open_context(info, prompt, route)
        with self._lock:
            self._open[info.request_id] = _OpenRequest(info, handle, route.write_scope)

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
        self, request_ids: Sequence[str], *, max_tokens: int | Mapping[str, int] = 8
    ) -> list[TokenTree]:
        """Drafts for a batch in one native call.

        Entry i belongs to request_ids[i] and may be empty.

        Args:
            request_ids: open requests, each at most once.
            max_tokens: most nodes for each tree (>= 0), one number for all or one for each request
                id.
        """
        return self.propose_batch(request_ids, max_tokens=max_tokens).trees()

    def propose_batch(
        self, request_ids: Sequence[str], *, max_tokens: int | Mapping[str, int] = 8
    ) -> TreeBatch:
        """`propose` in flat arrays: a third of the time for a large batch."""
        if isinstance(max_tokens, int):
            limits = np.full(len(request_ids), max_tokens, np.int32)
        else:
            limits = np.array([max_tokens[request_id] for request_id in request_ids], np.int32)
        return TreeBatch(*self.index.propose(self._handles(request_ids), limits))

    def finish(self, request_id: str) -> None:
        """Close a request, keep its context for the session's next turn and publish what it added.

        Unknown ids are ignored: an engine may report an end twice.
        """
        with self._lock:
            request = self._open.pop(request_id, None)
        if request is None:
            return
        finished_at = self._clock()
        new_tokens, num_prompt = self.index.finish(request.handle, time=finished_at)
        self.memory.wrote(request.write_scope, time=finished_at)
        info = request.info
        if self._journal is None or not (info.record and info.scope and len(new_tokens)):
            return
        self._journal.publish(
            SequenceRecord(
                request_id=info.request_id,
                scope=info.scope,
                tenant=info.tenant,
                workload=info.workload,
                session=info.session,
                origin=self.origin,
                token_ids=new_tokens,
                num_prompt=num_prompt,
                finished_at=finished_at,
            )
        )

    def absorb(self, record: SequenceRecord) -> None:
        """Add what another engine served to this one's memory (the journal's reader calls this).

        O(tokens).
        """
        self.memory.append(
            Writer(
                scope=record.scope,
                tenant=record.tenant,
                workload=record.workload,
                session=record.session or record.request_id,
            ),
            record.token_ids,
            key=_digest(record.request_id),
            time=record.finished_at,
            num_prompt=record.num_prompt,
        )

    def forget(self, scope: str, request_id: str) -> int:
        """Draft no more from what one request of a scope said and read, wherever it was served.

        Returns the number of tokens forgotten here; a request that is open publishes what it has
        to the journal all the same. O(sequences of the scope).
        """
        return self.memory.delete(scope, _digest(request_id))

    def forget_before(self, scope: str, time: float) -> int:
        """Draft no more from what finished in a scope before a Unix time; returns how many tokens.

        O(sequences of the scope + tokens forgotten).
        """
        return self.memory.evict_before(scope, time)

    def expire(self) -> int:
        """Draft no more from what is older than its retention; returns how many tokens.

        Call it now and then, off the engine's step.
        """
        return self.memory.expire(self._clock())

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

    def _open_context(
        self, info: RequestInfo, prompt_ids: npt.NDArray[np.int32], route: Route
    ) -> int:
        read_scopes, read_sources = self._read_scopes(info, route)
        handle, _ = self.index.begin(
            prompt_ids,
            read_scopes=read_scopes,
            read_sources=read_sources,
            write_scope=route.write_scope,
            session=_session_key(info) if self.memory.settings.session else 0,
            key=_digest(info.request_id),
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


def _session_key(info: RequestInfo) -> int:
    """Key of a session within its scope (63 bits, 0 for none).

    A session id of one tenant never meets another's. A request that is not to be recorded leaves no
    context behind and finds none: its next turn is indexed anew.
    """
    if not (info.session and info.tenant and info.record and info.limits.session):
        return 0
    return _digest(f"{info.scope}\0{info.tenant}\0{info.session}")


def _writer(info: RequestInfo) -> Writer:
    return Writer(
        scope=info.scope,
        tenant=info.tenant,
        workload=info.workload,
        session=info.session or info.request_id,
        limits=info.limits,
    )


def _digest(text: str) -> int:
    """Positive key of 63 bits."""
    digest = blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1 or 1
