"""What engines and the proxy show at one moment: tenants, memory, replicas."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from paceline.middleware.dashboard.samples import Samples
from paceline.middleware.dashboard.totals import Totals

MOST_ROWS: Final = 40
"""Tenants' workloads that are shown, those with most tokens first."""
TIERS: Final = ("session", "workload", "tenant", "corpus")
MEDIAN: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRow:
    """One tenant's workload, since its engines and the proxy began.

    Attributes:
        tenant: "" where nobody vouched for it.
        workload: "" if unknown.
        requests: sequences.
        totals: over all engines.
        first_token_seconds: median at the proxy; None without streams.
        gap_seconds: between two pieces of a stream, likewise.
    """

    tenant: str
    workload: str
    requests: int
    totals: Totals
    first_token_seconds: float | None
    gap_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TierRow:
    """One tier of memory, over all engines.

    Attributes:
        tier: its name.
        tokens: held.
        drafted: tokens of it that were verified.
        accepted: of those, the right ones.
    """

    tier: str
    tokens: float
    drafted: float
    accepted: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaRow:
    """One engine.

    Attributes:
        name: of the configuration.
        is_healthy: as the proxy sees it; None where the proxy does not answer.
        problem: why its metrics could not be read, "" if they could.
        running: requests that it answers.
        waiting: requests that wait in it.
        tokens: that it has said.
        memory_bytes: of its draft memory.
        is_sharing: whether its journal is connected; None without one.
        first_byte_seconds: median until a stream's first byte, since the proxy began; None without
            streams.
        version: of the model drafter; None where versions are not followed.
    """

    name: str
    is_healthy: bool | None
    problem: str
    running: float
    waiting: float
    tokens: float
    memory_bytes: float
    is_sharing: bool | None
    first_byte_seconds: float | None
    version: int | None


def tenant_rows(engines: Samples, proxy: Samples) -> list[TenantRow]:
    """Every tenant's workloads. O(series)."""
    who = ("tenant", "workload")
    requests = engines.by("paceline_served_requests_total", *who)
    counts = {
        name: engines.by(f"paceline_served_{name}_total", *who)
        for name in ("tokens", "rounds", "saved_rounds", "round_seconds", "undrafted_seconds")
    }
    drafted = engines.by("paceline_served_drafted_tokens_total", *who, "source")
    accepted = engines.by("paceline_served_accepted_tokens_total", *who, "source")
    first = _medians(proxy, "paceline_proxy_first_token_seconds")
    gaps = _medians(proxy, "paceline_proxy_inter_token_seconds")
    rows = [
        TenantRow(
            tenant=key[0],
            workload=key[1],
            requests=int(number),
            totals=Totals(
                tokens=counts["tokens"].get(key, 0.0),
                rounds=counts["rounds"].get(key, 0.0),
                saved=counts["saved_rounds"].get(key, 0.0),
                round_seconds=counts["round_seconds"].get(key, 0.0),
                undrafted_seconds=counts["undrafted_seconds"].get(key, 0.0),
                drafted={k[2]: v for k, v in drafted.items() if k[:2] == key},
                accepted={k[2]: v for k, v in accepted.items() if k[:2] == key},
            ),
            first_token_seconds=first.get((key[0], key[1])),
            gap_seconds=gaps.get((key[0], key[1])),
        )
        for key, number in requests.items()
    ]
    return sorted(rows, key=lambda row: -row.totals.tokens)[:MOST_ROWS]


def tier_rows(engines: Samples) -> list[TierRow]:
    """Memory by tier. O(series)."""
    tokens = engines.by("paceline_memory_tier_tokens", "tier")
    drafted = engines.by("paceline_memory_drafted_tokens_total", "tier")
    accepted = engines.by("paceline_memory_accepted_tokens_total", "tier")
    return [
        TierRow(
            tier=tier,
            tokens=tokens.get((tier,), 0.0),
            drafted=drafted.get((tier,), 0.0),
            accepted=accepted.get((tier,), 0.0),
        )
        for tier in TIERS
        if (tier,) in tokens
    ]


def replica_row(name: str, engine: Samples | None, problem: str, proxy: Samples) -> ReplicaRow:
    """One engine, by what it shows and what the proxy says of it."""
    health = proxy.by("paceline_proxy_upstream_healthy", "upstream").get((name,))
    shown = Samples() if engine is None else engine
    versions = shown.by("paceline_drafter_version", "group")
    waits = proxy.by("paceline_proxy_upstream_first_byte_seconds_bucket", "upstream", "le")
    is_embedded = "paceline_engine_running" in shown
    return ReplicaRow(
        name=name,
        is_healthy=None if health is None else bool(health),
        problem=problem,
        running=shown.total(
            "paceline_engine_running" if is_embedded else "vllm:num_requests_running"
        ),
        waiting=shown.total(
            "paceline_engine_waiting" if is_embedded else "vllm:num_requests_waiting"
        ),
        tokens=Totals.of(shown).tokens,
        memory_bytes=shown.total("paceline_memory_bytes"),
        is_sharing=bool(shown.total("paceline_journal_connected"))
        if "paceline_journal_connected" in shown
        else None,
        first_byte_seconds=_quantile({k[1:]: n for k, n in waits.items() if k[0] == name}, MEDIAN),
        version=int(max(versions.values())) if versions else None,
    )


def quantile(proxy: Samples, name: str, share: float = MEDIAN) -> float | None:
    """A quantile over all series of a histogram; None where it has counted nothing."""
    return _quantile(proxy.by(f"{name}_bucket", "le"), share)


def _medians(proxy: Samples, name: str) -> dict[tuple[str, str], float]:
    buckets: dict[tuple[str, str], dict[tuple[str, ...], float]] = {}
    for key, count in proxy.by(f"{name}_bucket", "tenant", "workload", "le").items():
        buckets.setdefault((key[0], key[1]), {})[key[2:]] = count
    found = {who: _quantile(counts, MEDIAN) for who, counts in buckets.items()}
    return {who: value for who, value in found.items() if value is not None}


def _quantile(buckets: Mapping[tuple[str, ...], float], share: float) -> float | None:
    """Within a bucket, counts are taken to lie evenly, as Prometheus does."""
    ordered = sorted((float(le), count) for (le,), count in buckets.items())
    if not ordered or not ordered[-1][1]:
        return None
    wanted = share * ordered[-1][1]
    low, below = 0.0, 0.0
    for bound, count in ordered:
        if count >= wanted:
            if math.isinf(bound):
                return low
            return low + (bound - low) * (wanted - below) / (count - below)
        low, below = bound, count
    return low


def busy(replicas: Sequence[ReplicaRow]) -> tuple[int, int]:
    """Requests that are answered, and that wait, over all engines."""
    return int(sum(r.running for r in replicas)), int(sum(r.waiting for r in replicas))
