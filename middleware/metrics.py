"""What the proxy counts, in Prometheus' terms; a registry of its own for each proxy."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from paceline.middleware.route_metrics import RouteMetrics
from paceline.middleware.shaping import ShapingTotals
from paceline.middleware.traffic import Traffic

LATENCY_BUCKETS: Final = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class ShapingMetrics:
    """What shaping does and costs, by tenant and shape.

    Args:
        registry: takes the metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["tenant", "side_channel"]
        self._answers = Counter(
            "paceline_proxy_shaped_answers", "Shaped answers.", labels, registry=registry
        )
        self._ticks = Counter(
            "paceline_proxy_shaping_ticks",
            "Writes of shaped answers to clients.",
            labels,
            registry=registry,
        )
        self._padding = Counter(
            "paceline_proxy_shaping_padding_bytes",
            "Bytes of filler sent to clients.",
            labels,
            registry=registry,
        )
        self._pieces = Counter(
            "paceline_proxy_shaping_pieces",
            "Pieces of streams, as they came from engines, that were held back for a tick.",
            labels,
            registry=registry,
        )
        self._held = Counter(
            "paceline_proxy_shaping_held_seconds",
            "Seconds for which they were, together.",
            labels,
            registry=registry,
        )

    def add(self, tenant: str, shape: str, totals: ShapingTotals) -> None:
        """Count one answer that has ended or was given up."""
        for counter, value in (
            (self._answers, 1),
            (self._ticks, totals.num_ticks),
            (self._padding, totals.num_padding),
            (self._pieces, totals.num_held),
            (self._held, totals.held_seconds),
        ):
            counter.labels(tenant, shape).inc(value)


class ProxyMetrics:
    """Counters of one proxy.

    Labels are tenants and upstreams of its configuration, never what clients send; but for
    workloads, of which each tenant has a bounded number.

    Attributes:
        num_in_flight: requests being answered; told when metrics are read.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "paceline_proxy_requests",
            "Requests answered, by tenant, route and HTTP status.",
            ["tenant", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "paceline_proxy_request_seconds",
            "Time from a request's arrival to its last byte.",
            ["tenant", "route"],
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )
        # Looking labels up takes longer than counting.
        self._children = lru_cache(maxsize=None)(self._find_children)
        self.num_in_flight = 0
        Gauge(
            "paceline_proxy_in_flight", "Requests being answered.", registry=self.registry
        ).set_function(lambda: self.num_in_flight)
        self.client_aborts = Counter(
            "paceline_proxy_client_aborts",
            "Requests whose client left before the end.",
            ["tenant"],
            registry=self.registry,
        )
        self.internal_errors = Counter(
            "paceline_proxy_internal_errors",
            "Requests that failed for a reason of our own.",
            registry=self.registry,
        )
        self.routes = RouteMetrics(self.registry)
        self.shaping = ShapingMetrics(self.registry)
        self.traffic = Traffic()
        self.registry.register(self.traffic)

    def finished(self, tenant: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request. O(1)."""
        count, duration = self._children(tenant, route, status)
        count.inc()
        duration.observe(seconds)

    def _find_children(self, tenant: str, route: str, status: int) -> tuple[Counter, Histogram]:
        return (
            self.requests.labels(tenant, route, str(status)),
            self.seconds.labels(tenant, route),
        )

    def render(self) -> bytes:
        """All metrics in the text format."""
        return generate_latest(self.registry)
