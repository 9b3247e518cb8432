"""The draft memory in Prometheus' terms, read when it is asked for and never within a step."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import accumulate
from socketserver import ThreadingMixIn
from typing import Any, Final, Protocol
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import msgspec
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from paceline.adapters.decisions import DECISIONS_PATH, RequestDecisions
from paceline.adapters.drafter_figures import DrafterFigures
from paceline.adapters.served_metrics import served_metrics
from paceline.adapters.served_totals import Served, Who
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
    engine's adapters; never sessions, and of workloads, which are free text, a bounded number
    (`paceline.policies.series_bounds`).

    Args:
        speculator: whose memory.
        journal: the one it publishes to, None without one.
        figures: reads those of drafting; None, or returning None, where nothing drafts.
        drafter: reads those of the model drafter's versions, likewise.
        served: reads what was served, by tenant and workload.
    """

    def __init__(
        self,
        speculator: Speculator,
        journal: CountingJournal | None = None,
        *,
        figures: Callable[[], DraftingFigures | None] | None = None,
        drafter: Callable[[], DrafterFigures | None] | None = None,
        served: Callable[[], Mapping[Who, Served]] = dict,
    ) -> None:
        self._speculator = speculator
        self._journal = journal
        self._figures = figures
        self._drafter = drafter
        self._served = served

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
        drafter = self._drafter() if self._drafter is not None else None
        if drafter is not None:
            yield from _versions(drafter)
        yield from served_metrics(self._served())

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
        yield self._by_tier(stats)
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

    def _by_tier(self, stats: Mapping[str, int]) -> Metric:
        tokens = {"session": stats["context_tokens"], "corpus": stats["corpus_tokens"]}
        tokens |= {"workload": 0, "tenant": 0}
        for log in self._speculator.memory.sizes():
            tokens["tenant" if log.workload is None else "workload"] += log.num_tokens
        family = GaugeMetricFamily(
            "paceline_memory_tier_tokens", "Tokens held, by tier.", labels=["tier"]
        )
        for tier, number in tokens.items():
            family.add_metric([tier], number)
        return family


FindDecisions = Callable[[str], RequestDecisions | None]
"""The record of a request by its id; None where it is not known. From any thread."""
Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def serve_metrics(
    collector: Collector, *, host: str, port: int, find: FindDecisions | None = None
) -> Callable[[], None]:
    """Answer Prometheus, and who asks for one request's record, on a thread of its own.

    Args:
        collector: what Prometheus is told.
        host: address to listen on.
        port: of it.
        find: finds records, None for none.

    Returns:
        What stops it.

    Raises:
        OSError: the address cannot be listened on.
    """
    app = make_wsgi_app(registry_of(collector))
    server_class = _Server6 if ":" in host else _Server
    server = make_server(
        host, port, app if find is None else with_decisions(app, find), server_class, _Handler
    )
    thread = threading.Thread(target=server.serve_forever, name="paceline-metrics", daemon=True)
    thread.start()

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


def with_decisions(app: Wsgi, find: FindDecisions) -> Wsgi:
    """The same application, which answers ``/paceline/requests/ID`` with a request's record too."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path: str = environ["PATH_INFO"]
        if not path.startswith(DECISIONS_PATH):
            return app(environ, start_response)
        found = find(path.removeprefix(DECISIONS_PATH))
        body = b"{}" if found is None else msgspec.json.encode(found)
        start_response(
            "404 Not Found" if found is None else "200 OK",
            [("Content-Type", "application/json"), ("Content-Length", str(len(body)))],
        )
        return [body]

    return answer


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    def log_message(self, *_arguments: Any) -> None:  # the engine's log is not the place
        pass


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


def _versions(figures: DrafterFigures) -> Iterator[Metric]:
    """The model drafter's versions: which drafts, what has happened, how right each is."""
    group = figures.group
    for name, what, value in (
        (
            "version",
            "Version that drafts, 0 for what the engine was started with.",
            figures.version,
        ),
        ("canary", "Whether that version is tried here.", figures.is_canary),
        ("swap_seconds", "That a round has waited for the last swap.", figures.swap_seconds),
    ):
        gauge = GaugeMetricFamily(f"paceline_drafter_{name}", what, labels=["group"])
        gauge.add_metric([group], value)
        yield gauge
    events = CounterMetricFamily(
        "paceline_drafter_events",
        "What became of versions here, by kind.",
        labels=["group", "event"],
    )
    for name, count in asdict(figures.counts).items():
        events.add_metric([group, name], count)
    yield events
    labels = ["group", "version"]
    rounds = CounterMetricFamily(
        "paceline_drafter_rounds", "Requests' rounds that the model drafted for.", labels=labels
    )
    agreed = CounterMetricFamily(
        "paceline_drafter_agreed", "Of them, with its first token right.", labels=labels
    )
    accepted = CounterMetricFamily(
        "paceline_drafter_right_tokens", "Tokens of its own chains that were right.", labels=labels
    )
    for version, seen in figures.seen.items():
        rounds.add_metric([group, str(version)], seen.num_rounds)
        agreed.add_metric([group, str(version)], seen.num_agreed)
        accepted.add_metric([group, str(version)], seen.num_accepted)
    yield from (rounds, agreed, accepted)


def _drafting(figures: DraftingFigures) -> Iterator[Metric]:
    events = CounterMetricFamily(
        "paceline_draft_events", "Rounds, drafts and tokens, by kind.", labels=["event"]
    )
    for name, value in figures.events.items():
        events.add_metric([name], value)
    yield events
    yield GaugeMetricFamily(
        "paceline_draft_price",
        "Tokens that the time of one more verified token is worth, now.",
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
