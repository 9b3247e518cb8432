"""Which logs a request reads and writes, and that they stay within their bounds."""

from __future__ import annotations

import numpy as np
import pytest

from paceline.caches import DraftIndex
from paceline.caches.tier_settings import MemorySettings, TierLimits, TierSettings
from paceline.caches.tiers import Route, TieredMemory, Writer, log_name
from paceline.errors import ConfigError

SCOPE = "tenant:a"
COMMON = "common"


def writer(workload: str, session: str = "s", **more: object) -> Writer:
    values = {"scope": SCOPE, "tenant": "a"} | more
    return Writer(workload=workload, session=session, **values)  # type: ignore[arg-type]


class Memory:
    """A tiered memory, with names of workloads in place of ids of logs."""

    def __init__(self, **settings: object) -> None:
        self.index = DraftIndex()
        self.tiers = TieredMemory(self.index, MemorySettings(**settings))  # type: ignore[arg-type]

    def name(self, scope_id: int) -> str | None:
        sizes = {size.scope_id: size for size in self.tiers.sizes()}
        if scope_id < 0:
            return None
        workload = sizes[scope_id].workload
        return COMMON if workload is None else workload

    def serve(
        self, who: Writer, *, writes: bool = True, now: float = 0.0, num_tokens: int = 5
    ) -> tuple[list[str | None], str | None]:
        """One request from begin to finish; returns the names of what it read and wrote."""
        with self.tiers.route(who, writes=writes, now=now) as route:
            names = [self.name(scope_id) for scope_id in route.read_scopes.tolist()]
            written = self.name(route.write_scope)
            handle, _ = self.index.begin(
                np.arange(num_tokens, dtype=np.int32),
                read_scopes=route.read_scopes,
                write_scope=route.write_scope,
            )
        self.index.finish(handle, time=now)
        self.tiers.wrote(route.write_scope, time=now)
        self.check(route)
        return names, written

    def check(self, route: Route) -> None:
        assert route.read_scopes.dtype == np.int32
        assert len(route.is_workload) == len(route.read_scopes)
        sizes = self.tiers.sizes()
        stats = self.index.stats()
        assert stats["scopes"] == len(sizes) <= self.tiers.settings.max_logs
        assert stats["shared_tokens"] == sum(size.num_tokens for size in sizes)
        assert sum(size.num_tokens for size in sizes) <= self.tiers.settings.max_tokens
        self.index.check_integrity()


def test_a_workload_gets_its_own_log_with_its_second_session() -> None:
    """The first session writes to the common log, as often as it likes; the second opens one."""
    memory = Memory()
    assert memory.serve(writer("w", "s1")) == ([COMMON], COMMON)
    assert memory.serve(writer("w", "s1")) == ([COMMON], COMMON)
    assert memory.serve(writer("w", "s2")) == (["w", COMMON], "w")
    assert memory.serve(writer("w", "s1")) == (["w", COMMON], "w")


def test_names_that_each_session_has_for_itself_share_one_log() -> None:
    """A thousand workloads of one session each take one log, and all of them read it."""
    memory = Memory()
    for number in range(1000):
        assert memory.serve(writer(f"auto-{number}", f"s{number}")) == ([COMMON], COMMON)
    assert len(memory.tiers.sizes()) == 1


def test_a_request_reads_the_neighbours_that_were_written_to_last() -> None:
    """Its own log first, then the common one, then as many others as the settings say."""
    memory = Memory(num_neighbours=2)
    for workload in ("a", "b", "c", "d"):
        for session in ("s1", "s2"):
            memory.serve(writer(workload, session))
    memory.serve(writer("a", "s3"))
    assert memory.serve(writer("c", "s3"))[0] == ["c", COMMON, "a", "d"]
    with memory.tiers.route(writer("c"), writes=True, now=0.0) as route:
        assert route.is_workload.tolist() == [True, False, False, False]


def test_what_is_not_recorded_counts_for_no_workload() -> None:
    """A request that does not write reads what is there, and the next session is the first."""
    memory = Memory()
    assert memory.serve(writer("w", "s1"), writes=False) == ([COMMON], None)
    assert memory.index.stats()["shared_tokens"] == 0
    memory.serve(writer("w", "s2"))
    assert memory.serve(writer("w", "s1"), writes=False) == ([COMMON], None)
    assert memory.serve(writer("w", "s2"))[1] == COMMON


@pytest.mark.parametrize(
    ("off", "first", "second"),
    [
        ("workload", ([COMMON], COMMON), ([COMMON], COMMON)),
        ("tenant", (["w"], "w"), (["w"], "w")),
        ("both", ([], None), ([], None)),
    ],
)
@pytest.mark.parametrize("by", ["engine", "tenant"])
def test_a_tier_that_is_off_is_neither_read_nor_written(
    off: str, first: object, second: object, by: str
) -> None:
    """By the engine's settings or by the tenant's policy."""
    switches = {name: off not in (name, "both") for name in ("workload", "tenant")}
    settings, limits = {}, TierLimits(**switches)
    if by == "engine":
        settings = {name: TierSettings(enabled=on) for name, on in switches.items()}
        limits = TierLimits()
    memory = Memory(**settings)
    memory.serve(writer("other", "s1", limits=limits))
    memory.serve(writer("other", "s2", limits=limits))
    reads, written = memory.serve(writer("w", "s1", limits=limits))
    assert ([name for name in reads if name != "other"], written) == first
    reads, written = memory.serve(writer("w", "s2", limits=limits))
    assert ([name for name in reads if name != "other"], written) == second
    if off != "workload":
        assert "other" not in reads


def test_free_text_cannot_exhaust_the_memory() -> None:
    """Workloads and tenants without number take as many logs and tokens as are allowed; the least
    recently used go first."""
    memory = Memory(max_logs=8, max_tokens=300)
    for number in range(200):
        for session in ("s1", "s2"):
            memory.serve(
                writer(f"w{number % 20}", session, scope=f"tenant:{number % 30}"), num_tokens=20
            )
    assert 0 < len(memory.tiers.sizes()) <= 8
    stats = memory.tiers.stats()
    assert stats["logs_dropped"] > 0
    assert stats["tokens_dropped"] > 0
    last = writer("w19", "s3", scope="tenant:19")
    assert memory.serve(last)[0][:1] == ["w19"]


def test_what_is_too_old_is_forgotten() -> None:
    """By the shorter of the engine's and the tenant's retention, at the latest when it is asked."""
    memory = Memory(tenant=TierSettings(retention_seconds=100.0))
    memory.serve(writer("w", "s1"), now=10.0)
    memory.serve(writer("w", "s1"), now=50.0)
    assert memory.tiers.expire(100.0) == 0
    assert memory.tiers.expire(120.0) == 5
    assert memory.tiers.expire(120.0) == 0
    brief = writer("w", "s1", limits=TierLimits(retention_seconds=30.0))
    memory.serve(brief, now=120.0)
    assert memory.index.stats()["sequences"] == 1
    assert memory.tiers.stats()["tokens_expired"] >= 10


def test_records_go_where_requests_would() -> None:
    """What another engine served counts as a session and lands in the same log."""
    memory = Memory()
    tokens = np.arange(6, dtype=np.int32)
    for session in ("s1", "s2"):
        memory.tiers.append(writer("w", session), tokens, key=7, time=5.0, num_prompt=2)
    assert memory.serve(writer("w", "s3"))[0] == ["w", COMMON]
    assert memory.tiers.delete(SCOPE, 7) == 12
    assert memory.tiers.delete("tenant:other", 7) == 0
    assert memory.tiers.drop(SCOPE) > 0
    assert memory.tiers.sizes() == []


def test_what_was_drafted_outlives_its_log() -> None:
    """Counters of a sharing scope never sink, though sizes do when its logs are dropped."""
    memory = Memory()
    memory.serve(writer("w"))
    with memory.tiers.route(writer("w"), writes=True, now=0.0) as route:
        handle, _ = memory.index.begin(
            np.arange(3, dtype=np.int32), read_scopes=route.read_scopes, write_scope=-1
        )
    memory.index.propose(np.array([handle], np.int64), np.array([1], np.int32))
    before = memory.tiers.scope_stats(SCOPE)
    assert (before["drafted"], before["drafted_workload"], before["shared_tokens"]) == (1, 1, 6)
    memory.tiers.drop(SCOPE)
    after = memory.tiers.scope_stats(SCOPE)
    assert (after["drafted"], after["drafted_workload"]) == (1, 1)
    assert after["shared_tokens"] == 0
    assert memory.tiers.scopes() == [SCOPE]
    assert memory.tiers.scope_stats("tenant:other")["drafted"] == 0


def test_capacity_is_the_smallest_that_anyone_set() -> None:
    """A tenant's limit narrows the engine's capacity and never widens it."""
    memory = Memory(tenant=TierSettings(capacity=50))
    for limit, held in ((20, 20), (500, 50)):
        who = writer("w", scope=f"tenant:{limit}", limits=TierLimits(capacity=limit))
        for _ in range(30):
            memory.serve(who)
        sizes = {size.scope: size.num_tokens for size in memory.tiers.sizes()}
        assert sizes[who.scope] == held


def test_names_of_logs_never_meet() -> None:
    """Workloads are free text: two of them, or one and an adapter, never name the same log."""
    names = ["", "w", "w/workload:x", "x", "%", "w%2Fworkload%3Ax", None]
    scopes = ["tenant:a", "tenant:a/adapter:w", "tenant:a%2Fworkload%3Aw"]
    made = {log_name(scope, name) for scope in scopes for name in names}
    assert len(made) == len(names) * len(scopes)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: TierSettings(capacity=1), "capacity is 1; give 2 to"),
        (lambda: TierSettings(retention_seconds=0.0), "retention_seconds is 0.0; give more"),
        (lambda: TierLimits(capacity=0), "capacity is 0; give at least 2"),
        (lambda: MemorySettings(num_neighbours=-1), "num_neighbours is -1; give 0 or more"),
        (lambda: MemorySettings(max_logs=3), "max_logs is 3; one request reads up to 4 logs"),
        (lambda: MemorySettings(max_tokens=1), "max_tokens is 1; give at least 2"),
    ],
)
def test_wrong_settings_are_named(wrong: object, message: str) -> None:
    """Value, limit and what to do."""
    with pytest.raises(ConfigError, match=message):
        wrong()  # type: ignore[operator]
