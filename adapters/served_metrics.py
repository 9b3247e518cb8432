"""What an engine has served, in Prometheus' terms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client.core import CounterMetricFamily, Metric

from paceline.adapters.decisions import SOURCE_NAMES
from paceline.adapters.served_totals import Served, Who

WHO: Final = ("tenant", "workload")


def served_metrics(served: Mapping[Who, Served]) -> Iterator[Metric]:
    """Counters by tenant and workload, those of drafts by source too. O(pairs)."""
    for name, what, values in (
        ("requests", "Sequences that were begun.", {w: s.requests for w, s in served.items()}),
        ("tokens", "Tokens that were said.", {w: s.tokens for w, s in served.items()}),
        (
            "rounds",
            "Steps of the target after a reply's first token, for each request in them.",
            {w: s.rounds for w, s in served.items()},
        ),
        (
            "saved_rounds",
            "Rounds that accepted drafts made needless: one for each accepted token.",
            {w: sum(s.accepted) for w, s in served.items()},
        ),
        (
            "round_seconds",
            "Expected seconds of rounds as they were, summed over the requests in them.",
            {w: s.round_seconds for w, s in served.items()},
        ),
        (
            "undrafted_seconds",
            "Expected seconds of saying the same tokens without drafts, in the same batches.",
            {w: s.undrafted_seconds for w, s in served.items()},
        ),
    ):
        family = CounterMetricFamily(f"paceline_served_{name}", what, labels=WHO)
        for who, value in values.items():
            family.add_metric(who, value)
        yield family
    yield from _by_source(served)


def _by_source(served: Mapping[Who, Served]) -> Iterator[Metric]:
    """Only sources that have drafted: most tenants have no corpus, and no model."""
    labels = (*WHO, "source")
    drafted = CounterMetricFamily(
        "paceline_served_drafted_tokens", "Drafted tokens that were verified.", labels=labels
    )
    accepted = CounterMetricFamily(
        "paceline_served_accepted_tokens", "Those that were right.", labels=labels
    )
    for who, counts in served.items():
        for source, name in SOURCE_NAMES.items():
            if counts.drafted[source]:
                drafted.add_metric((*who, name), counts.drafted[source])
                accepted.add_metric((*who, name), counts.accepted[source])
    yield from (drafted, accepted)
