"""Naming requests by the kind of work they are: a look-up for what is known, a thread for the rest.

A request whose text has been seen gets its name from a dictionary. A new text is handed to a thread
that hashes and places it (`WorkloadKeeper`); the request waits for that at most
`WorkloadsConfig.wait_milliseconds` and else goes on under its fingerprint. The event loop does no
more than that, however long the thread takes.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client import Counter as CounterMetric

from paceline.adapters.failures import FailureLog
from paceline.caches.journal_client import RedisAddress
from paceline.caches.workload_store import IDLE_SECONDS
from paceline.errors import ConfigError
from paceline.middleware.config import ProxyConfig, WorkloadsConfig
from paceline.middleware.identity import Identity, Wording
from paceline.middleware.workload_keeper import REDIS_SECONDS, Place, WorkloadKeeper
from paceline.policies.tenants import LOCAL_TENANT, PolicyFile, resolved
from paceline.policies.text_features import TextFeatures
from paceline.policies.workload import fingerprint
from paceline.policies.workload_clusters import ClusterSettings

logger = logging.getLogger("paceline.workloads")

SYNC_SECONDS: Final = 1.0
"""How often requests are counted in Redis and what other proxies did is read."""
MAX_NAMES: Final = 16_384
"""Texts whose names are remembered, about 300 bytes each; the least recently used go."""
MAX_ALIASES: Final = 4096
MAX_QUEUED: Final = 256
MAX_QUEUED_BYTES: Final = 64 * 1024 * 1024
CLOSE_SECONDS: Final = 2.0
PAUSE_SECONDS: Final = 20e-6
SECONDS_BUCKETS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0)

TextKey = tuple[str, str]
"""A sharing scope, and the name that a text would have by itself."""


@dataclass(frozen=True, slots=True)
class _Job:
    key: TextKey
    place: Place
    wording: Wording
    begun_at: float
    queued_at: float


class WorkloadNamer:
    """Gives requests the name of their kind of work.

    Everything but its thread's work is done on one event loop.

    Args:
        config: what is named and how.
        redis_url: Redis that the names are shared through, None for names of this process alone.
        policy: tenants; None for the local one.
        registry: of the proxy's metrics.
        clock: Unix time in seconds.

    Raises:
        ConfigError: scikit-learn is missing.
        JournalError: the URL cannot be understood.
    """

    def __init__(
        self,
        config: WorkloadsConfig,
        redis_url: str | None,
        policy: PolicyFile | None,
        registry: CollectorRegistry,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if find_spec("sklearn") is None:
            raise ConfigError(
                "workloads.clusters needs scikit-learn: pip install 'paceline[proxy]', or set it "
                "to false"
            )
        self._config = config
        self._clock = clock
        self._names: OrderedDict[TextKey, str] = OrderedDict()
        self._aliases: OrderedDict[TextKey, str] = OrderedDict()
        self._pending: dict[TextKey, asyncio.Future[None]] = {}
        self._requests: Counter[TextKey] = Counter()
        self._requests_lock = threading.Lock()
        self._jobs: queue.Queue[_Job | None] = queue.Queue(MAX_QUEUED)
        self._queued_bytes = 0
        self._is_off = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failures = FailureLog(logger, "naming a workload")
        self._ttl = _ttl_by_scope(policy)
        self._keeper = WorkloadKeeper(
            None if redis_url is None else RedisAddress(redis_url, socket_seconds=REDIS_SECONDS),
            ClusterSettings(max_clusters=config.max_clusters),
            ttl_of=lambda scope: self._ttl.get(scope, IDLE_SECONDS),
            on_reset=lambda scope: self._on_loop(self._forget, scope),
            on_alias=lambda scope, renamed: self._on_loop(self._rename, scope, renamed),
            clock=clock,
        )
        self._metrics = NamingMetrics(registry, self._keeper)
        self._thread = threading.Thread(target=self._run, name="paceline-workloads", daemon=True)

    def set_policy(self, policy: PolicyFile | None) -> None:
        """From now on keep kinds for as long as this policy says."""
        self._ttl = _ttl_by_scope(policy)

    async def open(self) -> None:
        """Begin naming; the first texts go without while scikit-learn is imported."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Count what has not been counted if `timeout` seconds suffice, then stop."""
        if self._thread.is_alive():
            with suppress(queue.Full):
                self._jobs.put(None, timeout=timeout)
            self._thread.join(timeout)

    async def named(self, identity: Identity) -> Identity:
        """The identity with the name of its kind of work.

        A dictionary look-up for a text that was seen before, else at most the configured wait. A
        fingerprint for which the policy file has rules of its own stays.
        """
        wording = identity.wording
        if wording is None:
            self._metrics.count("header" if identity.workload else "none")
            return identity
        as_it_is = identity.workload and (
            not self._config.near_prompts or identity.tenant.pattern_of(identity.workload)
        )
        if as_it_is or not identity.policy.memory.workload:
            self._metrics.count("fingerprint" if identity.workload else "none")
            return identity
        scope = identity.tenant.scope(identity.policy.sharing)
        own = identity.workload or text_name(scope, wording.opening)
        key = (scope, own)
        name = self._known(key)
        if name is None and identity.policy.record and not self._is_off:
            await self._wait_for(key, Place(scope, identity.tenant.name), wording)
            name = self._known(key)
        if name is None:
            self._metrics.count("fingerprint" if identity.workload else "none")
            return identity
        if identity.policy.record:
            with self._requests_lock:
                self._requests[scope, name] += 1
        self._metrics.count("fingerprint" if name == identity.workload else "cluster")
        return identity if name == identity.workload else identity.renamed(name)

    def _known(self, key: TextKey) -> str | None:
        name = self._names.get(key)
        if name is None:
            return None
        self._names.move_to_end(key)
        return self._aliases.get((key[0], name), name)

    async def _wait_for(self, key: TextKey, place: Place, wording: Wording) -> None:
        pending = self._pending.get(key)
        if pending is None:
            pending = self._ask(key, place, wording)
        if pending is not None and self._config.wait_milliseconds > 0:
            await asyncio.wait((pending,), timeout=self._config.wait_milliseconds / 1000)

    def _ask(self, key: TextKey, place: Place, wording: Wording) -> asyncio.Future[None] | None:
        job = _Job(key, place, wording, self._clock(), time.perf_counter())
        try:
            if self._queued_bytes + wording.num_bytes > MAX_QUEUED_BYTES:
                raise queue.Full
            self._jobs.put_nowait(job)
        except queue.Full:
            self._metrics.dropped.labels("queue_full").inc()
            return None
        self._queued_bytes += wording.num_bytes
        assert self._loop is not None
        pending = self._pending[key] = self._loop.create_future()
        return pending

    def _settle(self, job: _Job, name: str) -> None:
        self._queued_bytes -= job.wording.num_bytes
        if name:
            self._names[job.key] = name
            if len(self._names) > MAX_NAMES:
                self._names.popitem(last=False)
        pending = self._pending.pop(job.key, None)
        if pending is not None and not pending.done():
            pending.set_result(None)

    def _forget(self, scope: str) -> None:
        """Drop the names of a scope; O(names), for what is forgotten."""
        for held in (self._names, self._aliases):
            for key in [key for key in held if key[0] == scope]:
                del held[key]

    def _rename(self, scope: str, renamed: Mapping[str, str]) -> None:
        """Follow names that go by another now. O(aliases)."""
        for name, successor in renamed.items():
            for key, goes_by in self._aliases.items():
                if key[0] == scope and goes_by == name:
                    self._aliases[key] = successor
            self._aliases[scope, name] = successor
            self._aliases.pop((scope, successor), None)
            if len(self._aliases) > MAX_ALIASES:
                self._aliases.popitem(last=False)

    def _on_loop(self, call: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None
        with suppress(RuntimeError):  # the loop was closed: nobody asks any more
            self._loop.call_soon_threadsafe(call, *arguments)

    def _run(self) -> None:
        try:
            features = TextFeatures()
        except Exception:  # a broken scikit-learn: what can be named without it still is
            logger.exception("workloads are named by header and fingerprint alone")
            self._metrics.dropped.labels("failed").inc()
            self._is_off = True
            return
        next_sync = time.monotonic() + SYNC_SECONDS
        while True:
            try:
                job = self._jobs.get(timeout=max(next_sync - time.monotonic(), 0.001))
            except queue.Empty:
                pass
            else:
                if job is None:
                    break
                self._on_loop(self._settle, job, self._placed(features, job))
            if time.monotonic() >= next_sync:
                self._count_requests()
                next_sync = time.monotonic() + SYNC_SECONDS
        self._count_requests()
        self._keeper.close()

    def _placed(self, features: TextFeatures, job: _Job) -> str:
        try:
            vectors = features.vectors(job.wording.parts(), pause=_let_others_run)
            return self._keeper.name(job.place, job.key[1], vectors, begun_at=job.begun_at)
        except Exception as error:  # noqa: BLE001  counted: one text must not end the naming of others
            self._metrics.dropped.labels("failed").inc()
            self._failures.record(error)
            return ""
        finally:
            self._metrics.seconds.observe(time.perf_counter() - job.queued_at)

    def _count_requests(self) -> None:
        with self._requests_lock:
            taken, self._requests = self._requests, Counter()
        by_scope: dict[str, Counter[str]] = {}
        for (scope, name), number in taken.items():
            by_scope.setdefault(scope, Counter())[name] += number
        try:
            left = self._keeper.count(by_scope)
        except Exception as error:  # noqa: BLE001  counted: naming goes on without
            self._metrics.dropped.labels("failed").inc()
            self._failures.record(error)
            return
        with self._requests_lock:
            for scope, counted in left.items():
                for name, number in counted.items():
                    self._requests[scope, name] += number


class NamingMetrics:
    """What naming counts; no label is anything that clients send.

    Args:
        registry: of the proxy's metrics.
        keeper: whose clusters are counted.
    """

    def __init__(self, registry: CollectorRegistry, keeper: WorkloadKeeper) -> None:
        names = CounterMetric(
            "paceline_proxy_workload_names",
            "Requests by what named their workload: header, fingerprint, cluster or none.",
            ["by"],
            registry=registry,
        )
        self._names = {by: names.labels(by) for by in ("header", "fingerprint", "cluster", "none")}
        self.dropped = CounterMetric(
            "paceline_proxy_workload_dropped",
            "Texts that went without a name of their kind, by reason.",
            ["reason"],
            registry=registry,
        )
        self.seconds = Histogram(
            "paceline_proxy_workload_seconds",
            "Time from a new text's arrival to the name of its kind.",
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        Gauge(
            "paceline_proxy_workload_clusters", "Kinds of work known.", registry=registry
        ).set_function(lambda: keeper.num_clusters)
        Gauge(
            "paceline_proxy_workload_local_clusters",
            "Kinds of work that Redis does not know of yet.",
            registry=registry,
        ).set_function(lambda: keeper.num_local)
        Gauge(
            "paceline_proxy_workload_shared",
            "Whether the kinds of work are shared through Redis at the moment.",
            registry=registry,
        ).set_function(lambda: keeper.is_shared)

    def count(self, by: str) -> None:
        """Count a request by what named it."""
        self._names[by].inc()


def text_name(scope: str, opening: bytes) -> str:
    """The name that a first message has by itself.

    The scope is part of the digest: names do not show that two scopes were sent the same text.
    """
    return f"kind-{fingerprint((scope.encode(), opening))}"


def _let_others_run() -> None:
    """Give the interpreter to the event loop, which else waits 5 ms for it."""
    time.sleep(PAUSE_SECONDS)


def namer_of(
    config: ProxyConfig, policy: PolicyFile | None, registry: CollectorRegistry
) -> WorkloadNamer | None:
    """What the configuration asks for; None if workloads are named by header and fingerprint alone.

    Raises:
        ConfigError: clusters are asked for and scikit-learn is missing.
        JournalError: the URL cannot be understood.
    """
    wanted = config.workloads
    redis_url = wanted.redis_url or (config.capture.redis_url if config.capture else None)
    if not (wanted.redis_url is not None if wanted.clusters is None else wanted.clusters):
        return None
    return WorkloadNamer(wanted, redis_url, policy, registry)


def _ttl_by_scope(policy: PolicyFile | None) -> dict[str, float]:
    """How long kinds outlive their last use: the shortest retention of a scope's tenants."""
    tenants = (LOCAL_TENANT,) if policy is None else policy.tenants
    found: dict[str, float] = {}
    for tenant in tenants:
        held = (resolved(tenant) if policy is None else policy.resolved(tenant)).policy
        seconds, scope = held.memory.retention_seconds, tenant.scope(held.sharing)
        kept = IDLE_SECONDS if seconds is None else min(seconds, IDLE_SECONDS)
        found[scope] = min(found.get(scope, IDLE_SECONDS), kept)
    return found
