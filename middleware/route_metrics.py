"""What routing counts, by engine; labels are names of the configuration alone."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from paceline.middleware.circuit import CircuitState
from paceline.middleware.traffic import FIRST_TOKEN_BOUNDS

REASONS: Final = ("only", "prefix", "load", "session", "least_outstanding", "round_robin")
CIRCUIT_NUMBERS: Final = {CircuitState.CLOSED: 0, CircuitState.HALF_OPEN: 1, CircuitState.OPEN: 2}


class RouteMetrics:
    """Metrics of all engines.

    Args:
        registry: takes them.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"paceline_proxy_{name}", text, ["upstream"], registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            names = ["upstream", *labels]
            return Counter(f"paceline_proxy_{name}", text, names, registry=registry)

        self.healthy = gauge("upstream_healthy", "Whether an engine is healthy.")
        self.circuit = gauge("upstream_circuit", "0: closed, 1: half open, 2: open.")
        self.draining = gauge("upstream_draining", "Whether an engine gets no new requests.")
        self.outstanding = gauge("upstream_outstanding", "Requests that an engine works on.")
        self.outstanding_tokens = gauge(
            "upstream_outstanding_tokens", "Tokens that it has to read and to say, estimated."
        )
        self.remembered = gauge(
            "upstream_remembered_bytes", "Text of prompts that it is taken to hold."
        )
        self._gauges = (
            *(self.healthy, self.circuit, self.draining),
            *(self.outstanding, self.outstanding_tokens, self.remembered),
        )
        self.first_byte = Histogram(
            "paceline_proxy_upstream_first_byte_seconds",
            "From a stream's being asked for to the first byte of its body: in the engine's queue, "
            "and its prompt is read.",
            ["upstream"],
            buckets=FIRST_TOKEN_BOUNDS,
            registry=registry,
        )
        self.failures = counter(
            "upstream_failures", "Engines that could not be reached or broke off."
        )
        self.retries = counter("retries", "Requests sent to an engine after another failed them.")
        self.given_up = counter(
            "upstream_given_up", "Answers that were given up because an engine hangs."
        )
        self.transitions = counter("circuit_transitions", "Changes of a circuit's state.", "to")
        self.placements = counter("placements", "Requests sent to an engine, by why.", "reason")
        self.hit_tokens = counter(
            "prefix_hit_tokens", "Tokens of prompts that an engine had served before, estimated."
        )
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts, estimated.")

    def of(self, name: str) -> ReplicaMetrics:
        """One engine's."""
        for gauge in self._gauges:
            gauge.labels(name)
        return ReplicaMetrics(self, name)

    def forget(self, name: str) -> None:
        """An engine is no longer among the upstreams: its gauges end, its counters stay."""
        for gauge in self._gauges:
            gauge.remove(name)


class ReplicaMetrics:
    """One engine's counters, looked up once: that takes longer than counting."""

    def __init__(self, metrics: RouteMetrics, name: str) -> None:
        self.first_byte = metrics.first_byte.labels(name)
        self.failures = metrics.failures.labels(name)
        self.retries = metrics.retries.labels(name)
        self.given_up = metrics.given_up.labels(name)
        self.hit_tokens = metrics.hit_tokens.labels(name)
        self.prompt_tokens = metrics.prompt_tokens.labels(name)
        self._placements = {reason: metrics.placements.labels(name, reason) for reason in REASONS}
        self._transitions = {s: metrics.transitions.labels(name, s.value) for s in CircuitState}

    def changed(self, state: CircuitState) -> None:
        """Its circuit has a new state."""
        self._transitions[state].inc()

    def placed(self, reason: str, prompt_tokens: float, hit_tokens: float) -> None:
        """A request was sent to it."""
        self._placements[reason].inc()
        self.prompt_tokens.inc(prompt_tokens)
        if hit_tokens:
            self.hit_tokens.inc(hit_tokens)
