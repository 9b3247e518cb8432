"""The draft memory in Prometheus' terms, read when it is asked for and never within a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import Final, Protocol

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from paceline.adapters.speculator import Speculator
from paceline.adapters.verify_budget import DraftingFigures
from paceline.caches.journal_lag import LAG_BOUNDS, LagCounts

TIERS: Final = {
    "context": "session",
    "workload": "workload",
    "tenant": "tenant",
    "corpus": "corpus",
}
"""Sources of drafts, as `DraftIndex.stats` names them, and the tiers they are."""
JOURNAL_GAUGES: Final = ("queued", "connected")


class CountingJournal(Protocol):
    """What is read of a `Journal`."""

    def stats(self) -> Mapping[str, int]:
        """Its counters."""

    def lag(self) -> LagCounts:
        """How late records came."""


class MemoryCollector(Collector):
    """Sizes, drafts and acceptance of one engine's draft memory, by sharing scope and tier.

    Labels are sharing scopes, which are made of the policy file's tenants and groups, and the
    engine's adapters; never workloads or sessions, which are free text.

    Args:
        speculator: whose memory.
        journal: the one it publishes to, None without one.
        figures: reads those of drafting; None, or returning None, where nothing drafts.
    """

    def __init__(
        self,
        speculator: Speculator,
        journal: CountingJournal | None = None,
        *,
        figures: Callable[[], DraftingFigures | None] | None = None,
    ) -> None:
        self._speculator = speculator
        self._journal = journal
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """One reading. O(logs held)."""
        yield from self._by_scope()
        yield from self._totals()
        if self._journal is not None:
            yield from journal_events(self._journal.stats())
            yield _lag(self._journal.lag())
        figures = self._figures() if self._figures is not None else None
        if figures is not None:
            yield from _drafting(figures)

    def _by_scope(self) -> Iterator[Metric]:
        drafted = CounterMetricFamily(
            "paceline_memory_drafted_tokens",
            "Tokens drafted, by sharing scope of the request and tier they came from.",
            labels=["scope", "tier"],
        )
        accepted = CounterMetricFamily(
            "paceline_memory_accepted_tokens", "Those that were accepted.", labels=["scope", "tier"]
        )
        tokens = GaugeMetricFamily(
            "paceline_memory_tokens", "Tokens in a scope's logs.", labels=["scope"]
        )
        sequences = GaugeMetricFamily(
            "paceline_memory_sequences", "Sequences in a scope's logs.", labels=["scope"]
        )
        for scope in self._speculator.memory.scopes():
            stats = self._speculator.memory.scope_stats(scope)
            for source, tier in TIERS.items():
                drafted.add_metric([scope, tier], stats[f"drafted_{source}"])
                accepted.add_metric([scope, tier], stats[f"accepted_{source}"])
            tokens.add_metric([scope], stats["shared_tokens"])
            sequences.add_metric([scope], stats["sequences"])
        yield from (drafted, accepted, tokens, sequences)

    def _totals(self) -> Iterator[Metric]:
        stats = self._speculator.stats()
        for name, what in (
            ("bytes", "Bytes of the draft memory, corpora apart."),
            ("context_tokens", "Tokens in contexts of open requests and of sessions."),
            ("sessions", "Contexts kept for a session's next turn."),
            ("requests", "Open requests."),
        ):
            yield GaugeMetricFamily(f"paceline_memory_{name}", what, value=stats[name])
        for name, what in (
            ("logs_dropped", "Logs dropped to make room."),
            ("tokens_dropped", "Tokens in them."),
            ("tokens_expired", "Tokens forgotten because of their age."),
        ):
            yield CounterMetricFamily(f"paceline_memory_{name}", what, value=stats[name])


def serve_metrics(collector: Collector, *, host: str, port: int) -> Callable[[], None]:
    """Answer Prometheus on a thread of its own; returns what stops it.

    Raises:
        OSError: the address cannot be listened on.
    """
    server, thread = start_http_server(port, addr=host, registry=registry_of(collector))

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


def registry_of(collector: Collector) -> CollectorRegistry:
    """A registry that holds this collector alone."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return registry


def _lag(lag: LagCounts) -> Metric:
    bounds = ["+Inf" if math.isinf(bound) else str(bound) for bound in LAG_BOUNDS]
    return HistogramMetricFamily(
        "paceline_journal_lag_seconds",
        "From a record's finish at another engine to its delivery here.",
        buckets=list(zip(bounds, accumulate(lag.counts), strict=True)),
        sum_value=lag.total_seconds,
    )


def journal_events(stats: Mapping[str, int]) -> Iterator[Metric]:
    """A journal's counters, and its state at the moment."""
    events = CounterMetricFamily(
        "paceline_journal_events", "What the journal counts, by kind.", labels=["event"]
    )
    for name, value in stats.items():
        if name in JOURNAL_GAUGES:
            yield GaugeMetricFamily(f"paceline_journal_{name}", "Of the journal, now.", value=value)
        else:
            events.add_metric([name], value)
    yield events


def _drafting(figures: DraftingFigures) -> Iterator[Metric]:
    events = CounterMetricFamily(
        "paceline_draft_events", "Rounds, drafts and tokens, by kind.", labels=["event"]
    )
    for name, value in figures.events.items():
        events.add_metric([name], value)
    yield events
    yield GaugeMetricFamily(
        "paceline_draft_price",
        "Chance of being accepted below which a drafted token is not worth verifying, now.",
        value=figures.price,
    )
    seconds = GaugeMetricFamily(
        "paceline_round_cost_seconds",
        "What a round takes, as learned: for itself, each request, token, and token of context.",
        labels=["of", "part"],
    )
    for name, cost in figures.costs.items():
        seconds.add_metric([name, "round"], cost.fixed_seconds)
        seconds.add_metric([name, "request"], cost.request_seconds)
        seconds.add_metric([name, "token"], cost.token_seconds)
        seconds.add_metric([name, "context"], cost.context_seconds)
    yield seconds
    rounds = CounterMetricFamily(
        "paceline_arm_rounds", "Rounds of requests, by the arm they drafted with.", labels=["arm"]
    )
    for name, value in figures.arms.items():
        rounds.add_metric([name], value)
    yield rounds
