"""Looking on at generations: what becomes of each goes into metrics, the log and traces."""

from __future__ import annotations

import logging
import time
from typing import Final

from paceline.middleware.exchange import Exchange
from paceline.middleware.identity import Identity
from paceline.middleware.metrics import ProxyMetrics
from paceline.middleware.tracing import Span, Tracing
from paceline.middleware.traffic import StreamWatch
from paceline.middleware.usage_editing import USAGE, UsageMeter

requests_log: Final = logging.getLogger("paceline.requests")
LOST: Final = 499
"""Status that a request is logged with whose client left before anything was answered (nginx's)."""


class Generation:
    """One generation while it is answered.

    Args:
        exchange: with its client.
        identity: who asks.
        watch: times it.
        span: of its trace, None where nothing is traced.
    """

    __slots__ = ("_began_at", "_exchange", "_identity", "_meter", "_span", "_watch")

    def __init__(
        self, exchange: Exchange, identity: Identity, watch: StreamWatch, span: Span | None
    ) -> None:
        self._exchange = exchange
        self._identity = identity
        self._watch = watch
        self._span = span
        self._meter = UsageMeter()
        self._began_at = time.perf_counter() if exchange.read_at is None else exchange.read_at

    def asked(self) -> None:
        """See `Watches.asked`."""
        self._watch.asked()

    def wrote(self, piece: bytes) -> None:
        """See `Watches.wrote`."""
        self._watch.wrote(piece)
        if self._span is not None and USAGE in piece:
            self._meter.read_events(piece)

    def answered(self, body: bytes) -> None:
        """See `Watches.answered`."""
        if self._span is not None:
            self._meter.read_whole(body)

    def finish(self) -> None:
        """See `Watches.finish`."""
        self._watch.finish()
        status = self._exchange.status or LOST
        first, queue = self._watch.first_token_seconds, self._watch.queue_seconds
        if requests_log.isEnabledFor(logging.INFO):
            requests_log.info(
                "request",
                extra={
                    "request_id": self._exchange.request_id,
                    "trace_id": "" if self._span is None else self._span.trace_id,
                    "tenant": self._identity.tenant.name,
                    "workload": self._identity.workload,
                    "route": self._exchange.path,
                    "status": status,
                    "seconds": round(time.perf_counter() - self._began_at, 6),
                    "queue_seconds": None if queue is None else round(queue, 6),
                    "first_token_seconds": None if first is None else round(first, 6),
                    "pieces": self._watch.num_pieces,
                    "engine": self._exchange.engine,
                },
            )
        if self._span is not None:
            self._span.end(
                request_id=self._exchange.request_id,
                status=status,
                engine=self._exchange.engine,
                first_token_seconds=first,
                num_read=self._meter.num_read if self._meter.is_known else None,
                num_said=self._meter.num_said if self._meter.is_known else None,
            )


class Observer:
    """Looks on at every generation of a proxy.

    Args:
        metrics: of the proxy.
        tracing: makes spans, None for none.
    """

    def __init__(self, metrics: ProxyMetrics, tracing: Tracing | None) -> None:
        self._metrics = metrics
        self._tracing = tracing

    def begin(self, exchange: Exchange, identity: Identity, body: bytes) -> None:
        """A generation is about to be answered."""
        who = identity.tenant.name, identity.workload
        watch = self._metrics.traffic.watch(*who, exchange.read_at)
        if self._tracing is None and not requests_log.isEnabledFor(logging.INFO):
            exchange.watch = watch
            return
        span = None
        if self._tracing is not None:
            span = self._tracing.begin(exchange.path, exchange.headers, body, *who)
            exchange.trace_headers = span.headers
        exchange.watch = Generation(exchange, identity, watch, span)

    def close(self) -> None:
        """Hand over the last spans. May take some seconds."""
        if self._tracing is not None:
            self._tracing.close()
