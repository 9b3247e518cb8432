"""The tiers of the shared memory: which logs a request reads, and which one takes its tokens.

A sharing scope has one *common* log and a log for each workload that more than one session has
asked for. Every token is stored once: in the log of its request's workload, or in the common log
while the workload has none. A request reads the log of its workload first (the workload tier), then
the common log and the logs of the workloads that were written to last (the tenant tier).

Names of workloads are free text. A name that each session has for itself, such as the fingerprint
of a system prompt with a date in it, never gets a log of its own, so that such sessions still draft
from each other; and no number of names takes more memory than the settings allow.

Source: the databases by temporal locality of Hierarchy Drafting (arXiv 2502.05609); who shares
them, and when a workload gets its own, is ours.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from paceline.caches._native import DraftIndex
from paceline.caches.tier_settings import NO_LIMITS, MemorySettings, TierLimits, TierSettings

MAX_PAST_SCOPES: Final = 4096
"""Sharing scopes whose counters outlive their logs."""
MAX_CANDIDATES: Final = 1024
"""Workloads of a scope without a log whose first session is remembered, the latest ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """Whose tokens they are, as far as choosing a log goes.

    Attributes:
        scope: sharing scope, not "".
        tenant: member of the scope.
        workload: free text; "" is a workload like any other.
        session: id of the conversation; the request's own id where it has none.
        limits: of the tenant.
    """

    scope: str
    tenant: str
    workload: str
    session: str
    limits: TierLimits = NO_LIMITS


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """Where one request's drafts come from and where its tokens go.

    Attributes:
        read_scopes: int32, (s,): ids of logs in the index, in order of locality.
        is_workload: bool, (s,): whether the log is of the workload tier for this request.
        write_scope: id of the log that takes its tokens, -1 for none.
    """

    read_scopes: npt.NDArray[np.int32]
    is_workload: npt.NDArray[np.bool_]
    write_scope: int


NOWHERE: Final = Route(np.empty(0, np.int32), np.empty(0, np.bool_), -1)
"""The route of a request that shares with no one."""


@dataclass(slots=True, eq=False)
class _Log:
    scope: str
    workload: str | None  # None: the common log
    scope_id: int
    capacity: int
    num_tokens: int = 0
    newest: float = -math.inf  # Unix time of what was added last


@dataclass(slots=True)
class _Scope:
    common: _Log | None = None
    workloads: OrderedDict[str, _Log] = field(default_factory=OrderedDict)  # last written last
    first_sessions: OrderedDict[str, str] = field(default_factory=OrderedDict)
    limits: dict[str, TierLimits] = field(default_factory=dict)  # by tenant

    def logs(self) -> list[_Log]:
        return [*self.workloads.values(), *([self.common] if self.common else [])]


@dataclass(frozen=True, slots=True)
class LogSize:
    """One log, for metrics.

    Attributes:
        scope: its sharing scope.
        workload: whose it is, None for the common log.
        scope_id: its id in the index.
        num_tokens: tokens in it.
    """

    scope: str
    workload: str | None
    scope_id: int
    num_tokens: int


class TieredMemory:
    """The logs of one draft index.

    Thread-safe. Every token that is added to a log of the index goes through here, so that what the
    logs hold together stays within the settings.

    Args:
        index: holds the logs; its scopes belong to this object.
        settings: of the engine.
    """

    def __init__(self, index: DraftIndex, settings: MemorySettings | None = None) -> None:
        self.settings = MemorySettings() if settings is None else settings
        self._index = index
        self._scopes: dict[str, _Scope] = {}
        self._logs: OrderedDict[int, _Log] = OrderedDict()  # by id, least recently used first
        self._num_tokens = 0
        self._past: dict[str, Counter[str]] = {}  # of logs that are gone, by sharing scope
        self._counts = dict.fromkeys(("logs_dropped", "tokens_dropped", "tokens_expired"), 0)
        self._lock = threading.RLock()

    @contextmanager
    def route(self, writer: Writer, *, writes: bool, now: float) -> Iterator[Route]:
        """The route of a request; none of its logs is dropped within the body.

        O(logs read), but for the first request of a tenant whose retention is shorter than what its
        scope's logs were kept by: that forgets what is too old at once.

        Args:
            writer: who asks.
            writes: False reads only; such a request is no session that a workload's log waits for.
            now: Unix time in seconds.
        """
        with self._lock:
            self._limit(writer, now)
            yield self._route(writer, writes=writes)

    def wrote(self, scope_id: int, *, time: float) -> None:
        """Account for what a request has added to a log; unknown ids are ignored. O(1) mostly."""
        with self._lock:
            log = self._logs.get(scope_id)
            if log is None:
                return
            self._measure(log)
            log.newest = max(log.newest, time)
            if log.workload is not None:
                self._scopes[log.scope].workloads.move_to_end(log.workload)
            self._make_room(log)

    def append(
        self,
        writer: Writer,
        token_ids: npt.NDArray[np.int32],
        *,
        key: int,
        time: float,
        num_prompt: int,
    ) -> int:
        """Add a sequence that another engine served; see `DraftIndex.append_shared`. O(tokens).

        Returns the id of the log that took it, -1 for none.
        """
        scope_id = -1
        while True:
            with self._lock:
                previous, scope_id = scope_id, self._write_scope(writer)
            if scope_id < 0:
                return -1
            try:
                self._index.append_shared(
                    scope_id, token_ids, key=key, time=time, num_prompt=num_prompt
                )
            except ValueError:
                # Dropped since, by another thread: it has another id by now, or the fault is ours.
                if previous == scope_id or scope_id in self._logs:
                    raise
                continue
            self.wrote(scope_id, time=time)
            return scope_id

    def delete(self, scope: str, key: int) -> int:
        """Forget the sequences of a key in a sharing scope; returns how many tokens went.

        O(sequences of the scope).
        """
        delete = self._index.delete_sequence
        return sum(
            self._forget(log, partial(delete, log.scope_id, key)) for log in self._held(scope)
        )

    def evict_before(self, scope: str, time: float) -> int:
        """Forget what a sharing scope was given before a Unix time; returns how many tokens.

        Kept contexts of its requests go likewise.
        """
        evict = self._index.evict_before
        return sum(
            self._forget(log, partial(evict, log.scope_id, time)) for log in self._held(scope)
        )

    def delete_in(self, scope_id: int, key: int) -> int:
        """Forget the sequences of a key in one log; returns how many tokens went.

        A log that is gone has none. O(sequences of the log).
        """
        delete = self._index.delete_sequence
        log = self._logs.get(scope_id)
        return 0 if log is None else self._forget(log, partial(delete, scope_id, key))

    def evict_in(self, scope_id: int, time: float) -> int:
        """Forget what one log was given before a Unix time; returns how many tokens went.

        A log that is gone has none. O(sequences of the log + tokens forgotten).
        """
        evict = self._index.evict_before
        log = self._logs.get(scope_id)
        return 0 if log is None else self._forget(log, partial(evict, scope_id, time))

    def drop(self, scope: str) -> int:
        """Forget everything of a sharing scope, its sessions included; returns how many tokens."""
        with self._lock:
            return sum(self._drop(log) for log in self._held(scope))

    def expire(self, now: float) -> int:
        """Forget what is older than its retention, contexts too; returns how many tokens.

        Call it now and then, off the engine's step: O(sequences + tokens forgotten).
        """
        with self._lock:
            scopes = list(self._scopes)
        num_expired = sum(self._expire(scope, now) for scope in scopes)
        if (retention := self.settings.session.retention_seconds) is not None:
            num_expired += self._index.evict_contexts_before(now - retention)
        with self._lock:
            self._counts["tokens_expired"] += num_expired
        return num_expired

    def sizes(self) -> list[LogSize]:
        """Every log, least recently used first."""
        with self._lock:
            return [
                LogSize(log.scope, log.workload, log.scope_id, log.num_tokens)
                for log in self._logs.values()
            ]

    def stats(self) -> dict[str, int]:
        """Counters since the start: logs and tokens dropped to make room, tokens expired."""
        with self._lock:
            return dict(self._counts)

    def scope_stats(self, scope: str) -> Counter[str]:
        """`DraftIndex.scope_stats` over the logs of a sharing scope; what is missing is 0.

        What was drafted and accepted counts dropped logs too: it never sinks.
        """
        with self._lock:
            total = Counter(self._past.get(scope, {}))
            for log in self._held(scope):
                total.update(self._index.scope_stats(log.scope_id))
        return total

    def scopes(self) -> list[str]:
        """Names of the sharing scopes that have logs or had some."""
        with self._lock:
            return sorted({*self._past, *(log.scope for log in self._logs.values())})

    def _limit(self, writer: Writer, now: float) -> None:
        """Note the tenant's limits; a new retention holds before anything is read."""
        scope = self._scopes.get(writer.scope)
        if scope is None:
            scope = self._scopes[writer.scope] = _Scope()
        if scope.limits.get(writer.tenant) != writer.limits:
            scope.limits[writer.tenant] = writer.limits
            self._counts["tokens_expired"] += self._expire(writer.scope, now)
            self._scopes.setdefault(writer.scope, scope)  # it goes with the last of its logs

    def _route(self, writer: Writer, *, writes: bool) -> Route:
        scope, limits = self._scopes[writer.scope], writer.limits
        has_tenant_tier = self.settings.tenant.enabled and limits.tenant
        home = self._home(scope, writer, opens=writes)
        reads = [] if home is None else [home]
        if has_tenant_tier:
            if scope.common is not None and scope.common is not home:
                reads.append(scope.common)
            reads += self._neighbours(scope, home)
        for log in reads:
            self._logs.move_to_end(log.scope_id)
        is_own = home is not None and self._has_workload_tier(limits)
        if not scope.logs():
            del self._scopes[writer.scope]
        return Route(
            np.array([log.scope_id for log in reads], np.int32),
            np.array([is_own and log is home for log in reads], np.bool_),
            home.scope_id if writes and home is not None else -1,
        )

    def _has_workload_tier(self, limits: TierLimits) -> bool:
        return self.settings.workload.enabled and limits.workload

    def _write_scope(self, writer: Writer) -> int:
        """The log for a record, whose tenant's limits are those of its last request here."""
        scope = self._scopes.setdefault(writer.scope, _Scope())
        known = scope.limits.get(writer.tenant, NO_LIMITS)
        home = self._home(scope, replace(writer, limits=known), opens=True)
        if not scope.logs():
            del self._scopes[writer.scope]
        return -1 if home is None else home.scope_id

    def _home(self, scope: _Scope, writer: Writer, *, opens: bool) -> _Log | None:
        """The log of a request's workload, the common one while it has none."""
        has_tenant_tier = self.settings.tenant.enabled and writer.limits.tenant
        if self._has_workload_tier(writer.limits):
            log = scope.workloads.get(writer.workload)
            if log is not None:
                return log
            if opens and (not has_tenant_tier or _is_second(scope, writer)):
                return self._open_workload(scope, writer)
        if not has_tenant_tier:
            return None
        if scope.common is None:
            scope.common = self._open(writer.scope, None, self.settings.tenant, scope)
            self._make_room(scope.common)
        return scope.common

    def _open_workload(self, scope: _Scope, writer: Writer) -> _Log:
        log = self._open(writer.scope, writer.workload, self.settings.workload, scope)
        scope.workloads[writer.workload] = log
        scope.first_sessions.pop(writer.workload, None)
        self._make_room(log)
        return log

    def _open(self, name: str, workload: str | None, tier: TierSettings, scope: _Scope) -> _Log:
        limits = (limits.capacity for limits in scope.limits.values())
        capacity = min(
            tier.capacity,
            self.settings.max_tokens,
            *(limit for limit in limits if limit is not None),
        )
        scope_id = self._index.scope(log_name(name, workload), capacity=capacity)
        log = self._logs[scope_id] = _Log(name, workload, scope_id, capacity)
        return log

    def _neighbours(self, scope: _Scope, home: _Log | None) -> list[_Log]:
        found: list[_Log] = []
        for log in reversed(scope.workloads.values()):
            if len(found) >= self.settings.num_neighbours:
                break
            if log is not home:
                found.append(log)
        return found

    def _measure(self, log: _Log) -> None:
        before = log.num_tokens
        log.num_tokens = self._index.scope_stats(log.scope_id)["shared_tokens"]
        self._num_tokens += log.num_tokens - before

    def _make_room(self, kept: _Log) -> None:
        """Drop the least recently used logs until the others fit; never `kept`."""
        self._logs.move_to_end(kept.scope_id)
        while len(self._logs) > self.settings.max_logs or (
            self._num_tokens > self.settings.max_tokens and len(self._logs) > 1
        ):
            log = next(iter(self._logs.values()))
            self._counts["logs_dropped"] += 1
            self._counts["tokens_dropped"] += self._drop(log)

    def _drop(self, log: _Log) -> int:
        scope = self._scopes[log.scope]
        if log.workload is None:
            scope.common = None
        else:
            del scope.workloads[log.workload]
        if not scope.logs():
            del self._scopes[log.scope]
        del self._logs[log.scope_id]
        self._num_tokens -= log.num_tokens
        drafts = {
            name: count
            for name, count in self._index.scope_stats(log.scope_id).items()
            if name.startswith(("drafted", "accepted"))
        }
        self._past.setdefault(log.scope, Counter()).update(drafts)
        if len(self._past) > MAX_PAST_SCOPES:
            del self._past[next(iter(self._past))]
        return self._index.drop_scope(log.scope_id)

    def _held(self, scope: str) -> list[_Log]:
        with self._lock:
            held = self._scopes.get(scope)
            return held.logs() if held is not None else []

    def _expire(self, scope: str, now: float) -> int:
        with self._lock:
            held = self._scopes.get(scope)
            limits = list(held.limits.values()) if held is not None else []
        num_expired = 0
        for log in self._held(scope):
            tier = self.settings.tenant if log.workload is None else self.settings.workload
            retentions = [tier.retention_seconds, *(limit.retention_seconds for limit in limits)]
            shortest = min((r for r in retentions if r is not None), default=None)
            if shortest is not None:
                num_expired += self._expire_log(log, now - shortest)
        return num_expired

    def _expire_log(self, log: _Log, time: float) -> int:
        """Forget what a log was given before `time`; a log without anything newer is dropped."""
        with self._lock:
            if log.newest < time and log.scope_id in self._logs and log.num_tokens:
                return self._drop(log)
        return self._forget(log, partial(self._index.evict_before, log.scope_id, time))

    def _forget(self, log: _Log, forget: Callable[[], int]) -> int:
        try:
            num_forgotten = forget()
        except ValueError:
            with self._lock:
                if log.scope_id in self._logs:
                    raise
            return 0  # dropped since, by another thread
        with self._lock:
            if log.scope_id in self._logs:
                self._measure(log)
        return num_forgotten


def log_name(scope: str, workload: str | None) -> str:
    """Name of a log in the index: that of its sharing scope for the common log.

    Injective where the scope's name is made of quoted parts.
    """
    return scope if workload is None else f"{scope}/workload:{quote(workload, safe='')}"


def _is_second(scope: _Scope, writer: Writer) -> bool:
    """Whether another session has asked for the workload before; notes the first one."""
    first = scope.first_sessions.setdefault(writer.workload, writer.session)
    scope.first_sessions.move_to_end(writer.workload)
    if len(scope.first_sessions) > MAX_CANDIDATES:
        scope.first_sessions.popitem(last=False)
    return first != writer.session
