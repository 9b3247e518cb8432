"""The kinds of work that one proxy knows, kept in step with Redis; used by one thread.

Redis decides: before a text is placed, what other proxies have done since is read, and the change
is refused there if another came between. While Redis is away kinds are found here all the same.
They count as local until it is back: then each is taken in under its own name, or joins a near one
that others have found meanwhile, and its name becomes an alias of that one's.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from paceline.adapters.failures import FailureLog
from paceline.caches.journal_client import UNREACHABLE, Backoff, Client, RedisAddress
from paceline.caches.keys import Shelf
from paceline.caches.workload_store import Position, Synced, WorkloadStore
from paceline.errors import RecordError
from paceline.policies.text_features import Vectors
from paceline.policies.workload_clusters import (
    Change,
    Cluster,
    ClusterSettings,
    Example,
    Usage,
    WorkloadClusters,
    decode_cluster,
    encode_cluster,
)

logger = logging.getLogger("paceline.workloads")

MAX_TRIES: Final = 32
"""Attempts to place a text while other proxies place theirs; then it keeps its fingerprint."""
SWEEP_SECONDS: Final = 60.0
STEP_ASIDE_SECONDS: Final = 0.001
"""After each refusal a proxy waits up to this long, once more for each before, at random."""
REDIS_SECONDS: Final = 0.5
"""Longest wait for an answer: naming goes on without Redis rather than wait for it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a text comes from: a sharing scope, and the tenant that said it."""

    scope: str
    tenant: str


@dataclass(slots=True)
class _ScopeKinds:
    clusters: WorkloadClusters
    position: Position = field(default_factory=Position)
    stale: bool = True  # what Redis holds has to be read anew
    local: set[str] = field(default_factory=set)
    registered: set[str] = field(default_factory=set)


class WorkloadKeeper:
    """Names texts, counts requests, keeps to what Redis says.

    Args:
        address: Redis; None keeps everything in this process.
        settings: of the clusters.
        ttl_of: how long a scope's kinds outlive their last use, in seconds.
        on_reset: called with a scope whose kinds were forgotten or have run out.
        on_alias: called with a scope and names that go by another now.
        clock: Unix time in seconds.
        monotonic: seconds for waiting times.
        rng: of waiting times.
    """

    def __init__(
        self,
        address: RedisAddress | None,
        settings: ClusterSettings,
        *,
        ttl_of: Callable[[str], float],
        on_reset: Callable[[str], None] = lambda _: None,
        on_alias: Callable[[str, Mapping[str, str]], None] = lambda _, __: None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._rng = rng or random.Random()  # noqa: S311  jitter, not a secret
        self._address = address
        self._settings = settings
        self._ttl_of = ttl_of
        self._on_reset = on_reset
        self._on_alias = on_alias
        self._clock = clock
        self._monotonic = monotonic
        self._scopes: dict[str, _ScopeKinds] = {}
        self._client: Client | None = None
        self._backoff = Backoff(self._rng)
        self._next_try = self._next_sweep = self._monotonic()
        self._is_away = False
        self._failures = FailureLog(logger, "reading a kind of work")

    @property
    def num_clusters(self) -> int:
        """Kinds known, over all scopes."""
        return sum(len(kinds.clusters) for kinds in list(self._scopes.values()))

    @property
    def num_local(self) -> int:
        """Those of them that Redis does not know of yet."""
        return sum(len(kinds.local) for kinds in list(self._scopes.values()))

    @property
    def is_shared(self) -> bool:
        """Whether Redis answered last."""
        return self._client is not None

    def clusters(self, scope: str) -> list[Cluster]:
        """The kinds of a scope, as far as they are known here."""
        kinds = self._scopes.get(scope)
        return [] if kinds is None else kinds.clusters.clusters()

    def name(self, place: Place, text: str, vectors: Vectors, *, begun_at: float) -> str:
        """Name of the kind that a text belongs to, which is founded if need be.

        Args:
            place: where it comes from.
            text: its digest, and the name of a kind that it founds.
            vectors: of its parts.
            begun_at: Unix time at which it came.

        Returns:
            "" if it has no kind: nothing in it, or forgotten since it came.
        """
        if not vectors.any():
            return ""
        example = Example(text, vectors, begun_at)
        kinds = self._kinds(place.scope)
        store = self._store()
        if store is not None:
            try:
                return self._agreed(store, place, kinds, example)
            except (*UNREACHABLE, RecordError) as error:
                self._lost(error)
        change = kinds.clusters.place(example)
        if change.founded:
            kinds.local.add(change.name)
        self._apply(place.scope, kinds, change)
        return change.name

    def count(self, requests: Mapping[str, Mapping[str, int]]) -> Mapping[str, Mapping[str, int]]:
        """Add requests by scope and name, and look what others have done since.

        Returns:
            What could not be counted now: Redis is away.
        """
        if self._address is None:
            for scope, counted in requests.items():
                for name, number in counted.items():
                    self._kinds(scope).clusters.use(name, number, self._clock())
            self._sweep(None)
            return {}
        store = self._store()
        if store is None:
            return requests
        left = dict(requests)
        try:
            for scope in {*self._scopes, *requests}:
                self._look(store, scope)
                counted = left.get(scope, {})
                if counted:
                    position = self._kinds(scope).position
                    ttl = self._ttl_of(scope)
                    store.count(scope, position.generation, counted, ttl_seconds=ttl)
                    left.pop(scope)
            self._sweep(store)
        except (*UNREACHABLE, RecordError) as error:
            self._lost(error)
        return left

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None:
            with suppress(*UNREACHABLE):
                self._client.close()
            self._client = None

    def _kinds(self, scope: str) -> _ScopeKinds:
        if scope not in self._scopes:
            self._scopes[scope] = _ScopeKinds(WorkloadClusters(self._settings))
        return self._scopes[scope]

    def _store(self) -> WorkloadStore | None:
        """Redis, None if there is none or it is away and not to be tried again yet."""
        if self._address is None:
            return None
        if self._client is None:
            if self._monotonic() < self._next_try:
                return None
            try:
                self._client = self._address.connect()
            except UNREACHABLE as error:
                self._lost(error)
                return None
        return WorkloadStore(self._client)

    def _lost(self, error: Exception) -> None:
        if not self._is_away:
            assert self._address is not None
            logger.warning(
                "%s cannot be used (%s); kinds of work are this proxy's own until it can",
                self._address.shown,
                error,
            )
        self._is_away = True
        self.close()
        self._next_try = self._monotonic() + self._backoff.next_seconds()
        for kinds in self._scopes.values():
            kinds.stale = True

    def _agreed(
        self, store: WorkloadStore, place: Place, kinds: _ScopeKinds, example: Example
    ) -> str:
        for refusals in range(MAX_TRIES):
            if refusals:
                time.sleep(self._rng.uniform(0, STEP_ASIDE_SECONDS * refusals))
            synced = self._look(store, place.scope, text=example.name, tenant=place.tenant)
            if synced.forgotten_at >= example.at:
                return ""
            known = kinds.clusters.resolve(synced.text)
            if known in kinds.clusters:
                return known
            if kinds.clusters.is_full:
                self._read_usage(store, place.scope, kinds)
            change = kinds.clusters.place(example)
            if self._commit(store, place, kinds, change, text=(example.name, change.name)):
                return change.name
        found = kinds.clusters.nearest(example.vectors)
        return "" if found is None else found.name

    def _look(
        self, store: WorkloadStore, scope: str, *, text: str = "", tenant: str = ""
    ) -> Synced:
        """Read what has changed in Redis; where it was away, bring in what was found since."""
        kinds = self._kinds(scope)
        asked = Position() if kinds.stale else kinds.position
        synced = store.sync(scope, asked, text=text)
        self._backoff.reset()
        self._is_away = False
        put = list(self._readable(synced))
        found_here: list[Cluster] = []
        if kinds.position.generation != synced.position.generation:
            kinds.registered.clear()
            if kinds.position.generation:
                self._on_reset(scope)
        if synced.whole or kinds.stale:
            found_here = [kinds.clusters[name] for name in kinds.local if name in kinds.clusters]
            kinds.clusters = WorkloadClusters(self._settings, put, synced.gone)
        else:
            kinds.clusters.take(put, synced.gone)
        kinds.position, kinds.stale = synced.position, False
        self._tell_aliases(scope, synced.gone)
        if found_here:
            self._adopt(store, Place(scope, tenant), found_here, synced.forgotten_at)
        return synced

    def _readable(self, synced: Synced) -> Iterator[Cluster]:
        """The clusters read; those of a newer Paceline are left out, and counted."""
        for record in synced.put.values():
            try:
                yield decode_cluster(record)
            except RecordError as error:
                self._failures.record(error)

    def _adopt(
        self, store: WorkloadStore, place: Place, found_here: list[Cluster], forgotten_at: float
    ) -> None:
        """Take kinds in that were found while Redis was away, unless forgotten meanwhile."""
        kinds = self._kinds(place.scope)
        for cluster in found_here:
            for _ in range(MAX_TRIES):
                if cluster.first_at <= forgotten_at:
                    kinds.local.discard(cluster.name)
                    break
                change = kinds.clusters.adopt(cluster)
                if not change.put or self._commit(store, place, kinds, change, text=None):
                    kinds.local.discard(cluster.name)
                    break
                self._look(store, place.scope)

    def _commit(
        self,
        store: WorkloadStore,
        place: Place,
        kinds: _ScopeKinds,
        change: Change,
        *,
        text: tuple[str, str] | None,
    ) -> bool:
        # before the change: what is there must be known to who forgets
        if place.tenant and place.tenant not in kinds.registered:
            store.register(Shelf(place.scope, place.tenant))
        position = store.commit(
            place.scope,
            kinds.position,
            put={cluster.name: encode_cluster(cluster) for cluster in change.put},
            gone=change.gone,
            text=text,
            max_aliases=kinds.clusters.max_aliases,
            ttl_seconds=self._ttl_of(place.scope),
        )
        if position is None:
            return False
        kinds.position = position
        if place.tenant:
            kinds.registered.add(place.tenant)
        self._apply(place.scope, kinds, change)
        return True

    def _apply(self, scope: str, kinds: _ScopeKinds, change: Change) -> None:
        kinds.clusters.apply(change)
        kinds.local.difference_update(change.gone)
        self._tell_aliases(scope, change.gone)

    def _tell_aliases(self, scope: str, gone: Mapping[str, str]) -> None:
        renamed = {name: successor for name, successor in gone.items() if successor}
        if renamed:
            self._on_alias(scope, renamed)

    def _read_usage(self, store: WorkloadStore, scope: str, kinds: _ScopeKinds) -> None:
        used = store.use(scope)
        kinds.clusters.set_usage({n: Usage(u.num_requests, u.last_at) for n, u in used.items()})

    def _sweep(self, store: WorkloadStore | None) -> None:
        """Drop what nobody has asked for within its time."""
        if self._monotonic() < self._next_sweep:
            return
        self._next_sweep = self._monotonic() + SWEEP_SECONDS
        for scope, kinds in self._scopes.items():
            if store is not None:
                self._read_usage(store, scope, kinds)
            change = kinds.clusters.expired(self._clock() - self._ttl_of(scope))
            if change is None:
                continue
            if store is None:
                self._apply(scope, kinds, change)
            else:  # if another was first, the next sweep finds what is left
                self._commit(store, Place(scope, ""), kinds, change, text=None)
