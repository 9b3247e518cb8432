"""What the proxy counts, in Prometheus' terms; a registry of its own for each proxy."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LATENCY_BUCKETS: Final = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class ProxyMetrics:
    """Counters of one proxy.

    Labels are tenants and upstreams of its configuration, never what clients send.
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
        self.in_flight = Gauge(
            "paceline_proxy_in_flight", "Requests being answered.", registry=self.registry
        )
        self.upstream_failures = Counter(
            "paceline_proxy_upstream_failures",
            "Engines that could not be reached or broke off.",
            ["upstream"],
            registry=self.registry,
        )
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
        self.healthy = Gauge(
            "paceline_proxy_upstream_healthy",
            "Whether an engine is healthy.",
            ["upstream"],
            registry=self.registry,
        )

    def render(self) -> bytes:
        """All metrics in the text format."""
        return generate_latest(self.registry)
