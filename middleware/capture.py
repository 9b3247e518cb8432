"""The proxy as a producer of records: what engines without our worker serve fills the memory too.

A request of a tenant that may be recorded is sent on with ``return_token_ids``; the ids in the
engine's answer are taken out on the way (`token_editing`) and held (`captured_ids`). When the
client has its bytes, a thread of its own makes of them the records that an engine with our worker
would publish, under the same ids, so that Redis keeps one of the two where both do.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

import msgspec
import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from paceline.adapters.failures import FailureLog
from paceline.adapters.identity import record_id, request_info_from_xargs
from paceline.adapters.metrics import journal_events
from paceline.caches.journal import Journal
from paceline.caches.journal_keeper import Quota
from paceline.caches.records import ModelFingerprint, SequenceRecord
from paceline.caches.tokenizer import TextTokenizer
from paceline.errors import JournalError
from paceline.middleware.captured_ids import CapturedIds, CaptureRequest, HeldBytes, Sequence
from paceline.middleware.config import CaptureConfig
from paceline.middleware.identity import Identity
from paceline.middleware.known_prefixes import KnownPrefixes
from paceline.middleware.request_body import BodyView
from paceline.policies.tenants import LOCAL_TENANT, PolicyFile, resolved

logger = logging.getLogger("paceline.capture")

FLUSH_SECONDS: Final = 2.0
HTTP_OK: Final = 200


def fingerprint_of(config: CaptureConfig) -> ModelFingerprint:
    """Whose tokens the answers are made of: the same as engines with our worker find.

    Raises:
        ConfigError: there is no tokenizer, or the library that reads it is missing.
    """
    return ModelFingerprint(config.model, TextTokenizer(str(config.tokenizer)).digest)


class Capture:
    """Records what engines answer.

    Args:
        config: where to, and how much may be held.
        policy: tenants and what Redis keeps of them; None for the local one.
        registry: of the proxy's metrics.
        clock: Unix time in seconds.

    Attributes:
        origin: this process's id in its records.

    Raises:
        ConfigError: the tokenizer cannot be read.
        JournalError: the URL cannot be understood.
    """

    def __init__(
        self,
        config: CaptureConfig,
        policy: PolicyFile | None,
        registry: CollectorRegistry,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._clock = clock
        self.origin = f"proxy-{uuid.uuid4().hex}"
        self._quotas = quotas_of(policy)
        self._journal = Journal(
            config.redis_url,
            fingerprint_of(config),
            origin=self.origin,
            follows=False,
            quota_of=lambda tenant: self._quotas.get(tenant, Quota()),
            queue_tokens=config.queue_tokens,
        )
        self._held = HeldBytes(config.max_in_flight_bytes)
        self._known = KnownPrefixes()
        self._failures = FailureLog(logger, "recording")
        self._finished: queue.SimpleQueue[CapturedIds | None] = queue.SimpleQueue()
        self._thread = threading.Thread(
            target=self._record_until_stopped, name="paceline-capture", daemon=True
        )
        self._metrics = CaptureMetrics(registry, self._journal, self._held)

    def set_policy(self, policy: PolicyFile | None) -> None:
        """From now on keep to what this policy says that Redis keeps of each tenant."""
        self._quotas = quotas_of(policy)

    def open(self) -> bool:
        """Begin recording; False if Redis refuses us: the reason is logged, the proxy serves on.

        A Redis that cannot be reached now is waited for in the background.
        """
        try:
            self._journal.start()
        except JournalError as error:
            logger.error("nothing is recorded: %s", error)
            return False
        self._thread.start()
        return True

    def close(self, timeout: float = FLUSH_SECONDS) -> None:
        """Publish what has finished if `timeout` seconds suffice, then stop."""
        self._finished.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)
        self._journal.close(timeout)

    def request(
        self, request_id: str, identity: Identity, view: BodyView, *, tells_ids: bool = True
    ) -> CaptureRequest | None:
        """What to record of a request's answer; None if nothing of it may be, or can be.

        Args:
            request_id: the proxy's id of it.
            identity: whose it is.
            view: of its body.
            tells_ids: whether its endpoint has answers with token ids at all.
        """
        info = request_info_from_xargs(request_id, identity.xargs())
        if not info.is_recorded:
            return None
        if not tells_ids or not view.can_be_asked_for_ids:
            self._metrics.dropped.labels("unsupported_request").inc()
            return None
        return CaptureRequest(
            info=info,
            num_choices=view.num_choices,
            asked=view.asks_token_ids,
            began_at=self._clock(),
        )

    def taking(self, request: CaptureRequest, status: int) -> CapturedIds | None:
        """Where the ids of an answer go; None for an answer that is an error."""
        if status != HTTP_OK:
            return None
        return CapturedIds(request, self._held, self._config.max_request_bytes)

    def finish(self, captured: CapturedIds, *, reached_client: bool) -> None:
        """The answer has ended, or broke off, and the client has what came of it. O(1).

        An answer of which the client got nothing is not recorded: another engine gives it.
        """
        if not reached_client:
            captured.release()
        elif captured.reason:
            self._metrics.dropped.labels(captured.reason).inc()
        else:
            self._finished.put(captured)

    def _record_until_stopped(self) -> None:
        while (captured := self._finished.get()) is not None:
            try:
                self._record(captured)
            except Exception as error:  # noqa: BLE001  counted: one answer must not end the recording of others
                self._metrics.dropped.labels("failed").inc()
                self._failures.record(error)
            finally:
                captured.release()

    def _record(self, captured: CapturedIds) -> None:
        adapter = self._adapter_of(captured.model)
        if adapter is None:
            self._metrics.dropped.labels("other_model").inc()
            return
        try:
            sequences = captured.sequences()
        except msgspec.DecodeError:
            self._metrics.dropped.labels("odd_answer").inc()
            return
        if not sequences:
            self._metrics.dropped.labels("no_token_ids").inc()
            return
        request = replace(captured.request, info=replace(captured.request.info, adapter=adapter))
        for record in self._records(request, sequences):
            self._journal.publish(record)
        self._metrics.captured.labels(request.info.tenant).inc()

    def _adapter_of(self, model: str) -> str | None:
        """LoRA adapter of that name, "" for the model itself, None for a stranger."""
        if model == self._config.model:
            return ""
        return model if model in self._config.adapters else None

    def _records(
        self, request: CaptureRequest, sequences: list[Sequence]
    ) -> Iterator[SequenceRecord]:
        """A record of each sequence: what the session's earlier turns did not hold."""
        info, finished_at = request.info, self._clock()
        session = ""
        if info.session and info.limits.session:
            session = f"{info.scope}\0{info.tenant}\0{info.session}"
        wholes = [np.concatenate((s.prompt_ids, s.said_ids)) for s in sequences]
        starts = [self._known.num_known(session, s.prompt_ids) for s in sequences]
        for sequence, whole, start in zip(sequences, wholes, starts, strict=True):
            if session:
                self._known.add(session, whole)
            if start == len(whole):
                continue
            yield SequenceRecord(
                request_id=record_id(
                    info.recorded_as, prompt=sequence.prompt, choice=sequence.choice
                ),
                scope=info.scope,
                tenant=info.tenant,
                workload=info.workload,
                session=info.session,
                origin=self.origin,
                token_ids=whole[start:],
                num_prompt=len(sequence.prompt_ids) - start,
                finished_at=finished_at,
                started_at=request.began_at,
                learn=info.learn,
                drafter_group=info.drafter_group,
                temperature=info.temperature,
                num_before=start,
            )


class CaptureMetrics:
    """What the capture counts.

    Labels are tenants of the policy file and reasons of our own.

    Args:
        registry: of the proxy's metrics.
        journal: its counters are shown as those of engines are.
        held: bytes held.
    """

    def __init__(self, registry: CollectorRegistry, journal: Journal, held: HeldBytes) -> None:
        self.captured = Counter(
            "paceline_proxy_captured",
            "Answers handed to the journal, by tenant.",
            ["tenant"],
            registry=registry,
        )
        self.dropped = Counter(
            "paceline_proxy_capture_dropped",
            "Answers that were to be recorded and could not be, by reason.",
            ["reason"],
            registry=registry,
        )
        Gauge(
            "paceline_proxy_capture_held_bytes",
            "Token ids of requests in flight, as the engine wrote them.",
            registry=registry,
        ).set_function(lambda: held.num_bytes)
        registry.register(_JournalCollector(journal))


class _JournalCollector(Collector):
    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def collect(self) -> Iterator[Metric]:
        yield from journal_events(self._journal.stats())


def quotas_of(policy: PolicyFile | None) -> dict[str, Quota]:
    """What each tenant may keep in Redis, by its name."""
    tenants = (LOCAL_TENANT,) if policy is None else policy.tenants
    quotas = {}
    for tenant in tenants:
        memory = (resolved(tenant) if policy is None else policy.resolved(tenant)).policy.memory
        quotas[tenant.name] = Quota(
            max_tokens=memory.stored_tokens, retention_seconds=memory.retention_seconds
        )
    return quotas
