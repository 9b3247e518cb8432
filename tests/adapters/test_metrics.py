"""What Prometheus is told about the draft memory."""

from __future__ import annotations

import urllib.request

from prometheus_client import CollectorRegistry

from paceline.adapters.decisions import DecisionLog
from paceline.adapters.drafter_figures import DrafterFigures, WatchCounts
from paceline.adapters.metrics import MemoryCollector, registry_of, serve_metrics
from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from paceline.caches import Source
from paceline.caches.journal_lag import LagCounts, LagHistogram
from paceline.errors import DraftError
from paceline.policies.canary import Seen
from paceline.processes import free_port

TEXT = list(range(100, 140))


def serve(speculator: Speculator, name: str, **who: str) -> None:
    """One request that says `TEXT`, drafted for once."""
    speculator.begin(RequestInfo(request_id=name, **who), TEXT[:8])  # type: ignore[arg-type]
    speculator.propose([name])
    speculator.commit(name, TEXT[8:])
    speculator.finish(name)


def value(registry: CollectorRegistry, name: str, **labels: str) -> float:
    found = registry.get_sample_value(name, labels)
    if found is None:
        raise DraftError(f"{name} of {labels} is not told")
    return found


class Counted:
    """What a journal would say that took so many seconds with its records."""

    def __init__(self, *lags: float) -> None:
        self._lag = LagHistogram()
        for lag in lags:
            self._lag.add(lag)

    def stats(self) -> dict[str, int]:
        return {"published": 3, "queued": 2}

    def lag(self) -> LagCounts:
        return self._lag.read()


def test_drafts_are_told_by_scope_and_tier() -> None:
    """Who drafted from what, how much of it was right, and how much is held."""
    speculator = Speculator()
    for number, session in enumerate("stu"):
        serve(speculator, f"a{number}", tenant="a", workload="w", session=session)
    serve(speculator, "a3", tenant="a", workload="v", session="x")
    serve(speculator, "b", tenant="b")
    registry = registry_of(MemoryCollector(speculator))
    drafted = {
        tier: value(registry, "paceline_memory_drafted_tokens_total", scope="tenant:a", tier=tier)
        for tier in ("session", "workload", "tenant", "corpus")
    }
    assert drafted["workload"] > 0
    assert drafted["tenant"] > 0
    assert drafted["corpus"] == 0
    told = sum(drafted.values())
    assert told == speculator.stats()["drafted"]
    for tier, count in drafted.items():
        accepted = value(
            registry, "paceline_memory_accepted_tokens_total", scope="tenant:a", tier=tier
        )
        assert accepted == count
    held = value(registry, "paceline_memory_tokens", scope="tenant:a")
    held += value(registry, "paceline_memory_tokens", scope="tenant:b")
    assert held == speculator.stats()["shared_tokens"]
    tiers = {
        tier: value(registry, "paceline_memory_tier_tokens", tier=tier)
        for tier in ("session", "workload", "tenant", "corpus")
    }
    assert tiers["workload"] + tiers["tenant"] == held
    assert tiers["workload"] > 0
    assert tiers["tenant"] > 0
    assert tiers["session"] == speculator.stats()["context_tokens"] > 0
    assert tiers["corpus"] == 0
    assert value(registry, "paceline_memory_bytes") > 0


def test_what_was_forgotten_is_told() -> None:
    """Counters of dropped logs go on, and the journal's numbers are passed on."""
    speculator = Speculator()
    serve(speculator, "a", tenant="a", session="s")
    serve(speculator, "b", tenant="a", session="s")
    registry = registry_of(MemoryCollector(speculator, Counted()))
    name, labels = "paceline_memory_drafted_tokens_total", {"scope": "tenant:a", "tier": "workload"}
    before = value(registry, name, **labels)
    assert before > 0
    speculator.memory.drop("tenant:a")
    assert value(registry, name, **labels) == before
    assert value(registry, "paceline_memory_tokens", scope="tenant:a") == 0
    assert value(registry, "paceline_journal_events_total", event="published") == 3
    assert value(registry, "paceline_journal_queued") == 2


def test_the_journals_lag_is_a_histogram() -> None:
    """Each record counts in every bucket that is not below it; a negative lag counts as none."""
    registry = registry_of(MemoryCollector(Speculator(), Counted(0.05, 0.3, 20.0, -1.0)))
    buckets = {
        bound: value(registry, "paceline_journal_lag_seconds_bucket", le=bound)
        for bound in ("0.01", "0.05", "0.25", "0.5", "10.0", "+Inf")
    }
    assert list(buckets.values()) == [1, 2, 2, 3, 3, 4]
    assert value(registry, "paceline_journal_lag_seconds_count") == 4
    assert value(registry, "paceline_journal_lag_seconds_sum") == 0.05 + 0.3 + 20.0


def test_metrics_can_be_fetched() -> None:
    """Over HTTP while it is served."""
    speculator = Speculator()
    serve(speculator, "a", tenant="a")
    port = free_port()
    stop = serve_metrics(MemoryCollector(speculator), host="127.0.0.1", port=port)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            body = answer.read().decode()
    finally:
        stop()
    assert 'paceline_memory_tokens{scope="tenant:a"}' in body


def test_the_drafters_versions_are_told() -> None:
    """Which drafts, what has happened to versions, and how right each is; nothing without any."""
    figures = DrafterFigures(
        "team", 3, True, WatchCounts(swaps=4, rollbacks=1), 0.25, {2: Seen(10, 5, 9), 3: Seen(4, 1)}
    )
    registry = registry_of(MemoryCollector(Speculator(), drafter=lambda: figures))
    of = {"group": "team"}
    assert value(registry, "paceline_drafter_version", **of) == 3
    assert value(registry, "paceline_drafter_canary", **of) == 1
    assert value(registry, "paceline_drafter_swap_seconds", **of) == 0.25
    for event, count in (("swaps", 4), ("rollbacks", 1), ("failures", 0), ("unreachable", 0)):
        assert value(registry, "paceline_drafter_events_total", event=event, **of) == count
    for version, counts in (("2", (10, 5, 9)), ("3", (4, 1, 0))):
        for name, count in zip(("rounds", "agreed", "right_tokens"), counts, strict=True):
            found = value(registry, f"paceline_drafter_{name}_total", version=version, **of)
            assert found == count
    without = registry_of(MemoryCollector(Speculator(), drafter=lambda: None))
    assert without.get_sample_value("paceline_drafter_version", of) is None


def test_what_was_served_is_told_by_tenant_and_workload() -> None:
    """Tokens, rounds and saved rounds add up; open requests count; names are bounded."""
    log = DecisionLog()
    for number in range(15):
        tally = log.open(f"r{number}")
        tally.who = "a", f"kind-{number}"
        tally.begin()
        tally.note_round(bytes([Source.WORKLOAD] * 3), bytes([Source.WORKLOAD] * 2), (0.5, 0.25))
        tally.note_round(b"", b"", (0.25, 0.25))
        if number % 2:
            log.close(f"r{number}")
    registry = registry_of(MemoryCollector(Speculator(), served=log.served))
    for workload, count in (("kind-0", 1), ("kind-11", 1), ("other", 3)):
        who = {"tenant": "a", "workload": workload}
        told = {
            name: value(registry, f"paceline_served_{name}_total", **who)
            for name in ("requests", "tokens", "rounds", "saved_rounds")
        }
        assert list(told.values()) == [count, 5 * count, 2 * count, 2 * count]
        assert value(registry, "paceline_served_round_seconds_total", **who) == 0.75 * count
        assert value(registry, "paceline_served_undrafted_seconds_total", **who) == 1.0 * count
        for name, tokens in (("drafted", 3), ("accepted", 2)):
            metric = f"paceline_served_{name}_tokens_total"
            assert value(registry, metric, source="workload", **who) == tokens * count
            assert registry.get_sample_value(metric, {"source": "model", **who}) is None
    before = log.served()["a", "kind-0"]
    log.close("r0")
    assert log.served()["a", "kind-0"] == before
