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
from typing import Protocol

import numpy as np
import numpy.typing as npt

from paceline.adapters.forgetting import Owner, SequenceOwners
from paceline.adapters.phrases import LoadedPhrases
from paceline.caches import DraftIndex, SequenceRecord, TokenTree, TreeBatch
from paceline.caches.phrases import PhraseSet
from paceline.caches.tombstones import Tombstone
from paceline.errors import DraftError

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
        adapter: LoRA adapter that answers, "" for the bare target; adapters share nothing with each
            other.
        record: False keeps the request's tokens out of every shared memory and of the journal.
    """

    request_id: str
    tenant: str = "local"
    workload: str = ""
    session: str = ""
    group: str = ""
    adapter: str = ""
    record: bool = True

    @property
    def scope(self) -> str:
        """Name of the sharing scope, "" for none.

        Nothing of one scope reaches a draft of another.
        """
        if not self.tenant:
            return ""
        owner = f"group:{self.group}" if self.group else f"tenant:{self.tenant}"
        return f"{owner}/adapter:{self.adapter}" if self.adapter else owner


class RecordSink(Protocol):
    """Where finished sequences go (the journal): must not block."""

    def publish(self, record: SequenceRecord) -> None:
        """Take over one record; drop and count it rather than wait."""


@dataclass(slots=True)
class _OpenRequest:
    info: RequestInfo
    handle: int
    started_at: float
    is_forgotten: bool = False

    @property
    def owner(self) -> Owner:
        return Owner(self.info.tenant, self.info.scope, self.info.session)


class Speculator:
    """Drafts for the requests of one engine from its draft memory.

    Thread-safe; every call is O(tokens passed) plus index look-ups. `Speculator()` drafts from
    memory alone.

    Args:
        index: the draft memory; a new one with default capacity if None.
        journal: receives each finished sequence of a recording tenant; None keeps them in this
            process.
        origin: id of this process in its records; a random one if None.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        index: DraftIndex | None = None,
        *,
        journal: RecordSink | None = None,
        origin: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.index = DraftIndex() if index is None else index
        self.origin = uuid.uuid4().hex if origin is None else origin
        self._journal = journal
        self._clock = clock
        self._open: dict[str, _OpenRequest] = {}
        self._lock = threading.Lock()
        self._owners = SequenceOwners(self.index.shared_capacity)
        self._phrases = LoadedPhrases(self.index)

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

    def begin(self, info: RequestInfo, prompt_ids: TokenIds) -> None:
        """Open a request; indexes only what its session's earlier turns did not hold.

        Raises:
            DraftError: a request of that id is open already.
        """
        if info.request_id in self._open:
            raise DraftError(
                f"request {info.request_id!r} is open already; finish it or use a new id"
            )
        started_at = self._clock()
        scope_id = self.index.scope(info.scope) if info.scope else -1
        handle, _ = self.index.begin(
            _as_tokens(prompt_ids),
            read_scopes=np.array([scope_id] if scope_id >= 0 else [], dtype=np.int32),
            write_scope=scope_id if info.record else -1,
            session=_session_key(info),
            key=_digest(info.request_id),
        )
        with self._lock:
            self._open[info.request_id] = _OpenRequest(info, handle, started_at)

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
            request = self._open.get(request_id)
        if request is None:
            return
        finished_at = self._clock()
        info = request.info
        is_shared = info.record and bool(info.scope)
        if is_shared:
            # before it leaves the table: a tombstone finds it in one or the other
            self._owners.note(
                info.scope,
                request.owner,
                key=_digest(info.request_id),
                begun_at=request.started_at,
                finished_at=finished_at,
                is_own=True,
            )
        with self._lock:
            if self._open.pop(request_id, None) is None:
                return
        new_tokens, num_prompt = self.index.finish(request.handle, time=finished_at)
        if not is_shared:
            return
        self._owners.grew(info.scope, len(new_tokens))
        if self._journal is None or request.is_forgotten or not len(new_tokens):
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
                started_at=request.started_at,
            )
        )

    def absorb(self, record: SequenceRecord) -> None:
        """Add what another engine served to this one's memory (the journal's reader calls this).

        O(tokens).
        """
        key = _digest(record.request_id)
        self._owners.note(
            record.scope,
            Owner(record.tenant, record.scope, record.session),
            key=key,
            # a clock that runs ahead elsewhere must not hide from a tombstone what is here already
            begun_at=min(record.begun_at, self._clock()),
            finished_at=record.finished_at,
            is_own=False,
        )
        self._owners.grew(record.scope, len(record.token_ids))
        self.index.append_shared(
            self.index.scope(record.scope),
            record.token_ids,
            key=key,
            time=record.finished_at,
            num_prompt=record.num_prompt,
        )

    def absorb_again(self, record: SequenceRecord) -> None:
        """Make a record absorbed before the newest of its log. O(tokens + sequences of the log)."""
        self.index.delete_sequence(self.index.scope(record.scope), _digest(record.request_id))
        self.absorb(record)

    def absorb_phrases(self, found: PhraseSet) -> None:
        """Draft from what a workload says most until the journal is read. O(tokens)."""
        self._phrases.add(found.shelf.scope, found)

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
                scope_id = self.index.scope(request.info.scope)
                self.index.delete_sequence(scope_id, _digest(request.info.request_id))
        return len(covered) + self._owners.erase(self.index, tombstone)

    def forget(self, scope: str, request_id: str) -> int:
        """Draft no more from what one request of a scope said and read, wherever it was served.

        Returns the number of tokens forgotten here; a request that is open publishes what it has
        to the journal all the same. O(sequences of the scope).
        """
        return self.index.delete_sequence(self.index.scope(scope), _digest(request_id))

    def forget_before(self, scope: str, time: float) -> int:
        """Draft no more from what finished in a scope before a Unix time; returns how many tokens.

        O(sequences of the scope + tokens forgotten).
        """
        return self.index.evict_before(self.index.scope(scope), time)

    def stats(self) -> dict[str, int]:
        """Counters and sizes of the draft memory; see `DraftIndex.stats`."""
        return self.index.stats()

    def close(self) -> None:
        """Finish every open request. The journal belongs to the caller."""
        for request_id in self.request_ids():
            self.finish(request_id)

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

    A session id of one tenant never meets another's.
    """
    if not (info.session and info.tenant):
        return 0
    return _digest(f"{info.scope}\0{info.tenant}\0{info.session}")


def _digest(text: str) -> int:
    """Positive key of 63 bits."""
    digest = blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1 or 1
