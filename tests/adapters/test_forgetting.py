"""A tombstone takes out of an engine exactly what is its subject's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.adapters.forgetting import Owner, SequenceOwners
from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from paceline.caches import DraftIndex, SequenceRecord
from paceline.caches.keys import Shelf
from paceline.caches.phrases import PhraseSet
from paceline.caches.tier_settings import MemorySettings
from paceline.caches.tiers import TieredMemory
from paceline.caches.tombstones import Tombstone, subject_of


class Clock:
    """Unix time that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Sink:
    """Keeps what would have gone to the journal."""

    def __init__(self) -> None:
        self.records: list[SequenceRecord] = []

    def publish(self, record: SequenceRecord) -> None:
        self.records.append(record)


def info(name: str, tenant: str = "a", *, session: str = "", group: str = "") -> RequestInfo:
    return RequestInfo(request_id=name, tenant=tenant, session=session, group=group)


def text(number: int) -> list[int]:
    return list(range(1000 * number, 1000 * number + 40))


def say(speculator: Speculator, request: RequestInfo, number: int) -> None:
    speculator.begin(request, text(number)[:8])
    speculator.commit(request.request_id, text(number)[8:])
    speculator.finish(request.request_id)


def absorbed(request: RequestInfo, number: int, *, finished_at: float) -> SequenceRecord:
    return SequenceRecord(
        request_id=request.request_id,
        scope=request.scope,
        tenant=request.tenant,
        workload="",
        session=request.session,
        origin="elsewhere",
        token_ids=np.array(text(number), np.int32),
        num_prompt=8,
        finished_at=finished_at,
    )


def is_drafted(speculator: Speculator, asking: RequestInfo, number: int) -> bool:
    """Whether the text is drafted for a stranger's request that may read the scope."""
    speculator.begin(asking, text(number)[:8])
    tree = speculator.propose([asking.request_id], max_tokens=4)[0]
    speculator.finish(asking.request_id)
    return bool(len(tree.token_ids))


def ask(tenant: str = "a", group: str = "") -> RequestInfo:
    return RequestInfo(request_id="ask", tenant=tenant, group=group, record=False)


@pytest.mark.parametrize("served_here", [True, False])
def test_a_forgotten_tenant_is_drafted_no_more(served_here: bool) -> None:
    """Whoever served it; other tenants, and what is said afterwards, are drafted as before."""
    clock = Clock()
    speculator = Speculator(clock=clock)
    for number, request in enumerate((info("1"), info("2", session="s"), info("3", "b"))):
        if served_here:
            say(speculator, request, number)
        else:
            speculator.absorb(absorbed(request, number, finished_at=99.0))
    assert is_drafted(speculator, ask(), 0)
    assert speculator.forget_subject(Tombstone(subject_of(tenant="a"), 100.0)) == 2
    assert not is_drafted(speculator, ask(), 0)
    assert not is_drafted(speculator, ask(), 1)
    assert is_drafted(speculator, ask("b"), 2)
    clock.now = 101.0
    say(speculator, info("4"), 4)
    assert is_drafted(speculator, ask(), 4)
    speculator.index.check_integrity()


def test_a_forgotten_session_leaves_the_tenants_others() -> None:
    """Only the session's sequences go, in the tenant's own scope and in its group."""
    speculator = Speculator(clock=Clock())
    say(speculator, info("1", session="s"), 1)
    say(speculator, info("2", session="t"), 2)
    say(speculator, info("3", session="s", group="g"), 3)
    say(speculator, info("4", "b", session="s", group="g"), 4)
    assert speculator.forget_subject(Tombstone(subject_of(tenant="a", session="s"), 100.0)) == 2
    assert not is_drafted(speculator, ask(), 1)
    assert is_drafted(speculator, ask(), 2)
    assert not is_drafted(speculator, ask(group="g"), 3)
    assert is_drafted(speculator, ask(group="g"), 4)


def test_an_open_request_of_the_subject_is_neither_kept_nor_published() -> None:
    """It goes on drafting from its own text; others and its session's next turn get nothing."""
    clock, sink = Clock(), Sink()
    speculator = Speculator(clock=clock, journal=sink)
    speculator.begin(info("1", session="s"), text(1)[:8])
    speculator.begin(info("2", "b"), text(2)[:8])
    clock.now = 101.0
    assert speculator.forget_subject(Tombstone(subject_of(tenant="a"), 100.5)) == 1
    for name, number in (("1", 1), ("2", 2)):
        speculator.commit(name, text(number)[8:])
        speculator.finish(name)
    assert not is_drafted(speculator, ask(), 1)
    assert is_drafted(speculator, ask("b"), 2)
    assert [r.tenant for r in sink.records] == ["b"]
    assert sink.records[0].started_at == 100.0
    _, num_reused = speculator.index.begin(
        np.array(text(1), np.int32),
        read_scopes=np.array([speculator.index.scope("tenant:a")], np.int32),
        session=1,
    )
    assert num_reused == 0


def test_what_began_after_the_tombstone_stays() -> None:
    """Only sequences that had begun by then go, from a log that holds older and newer ones."""
    clock = Clock()
    speculator = Speculator(clock=clock)
    for number, now in ((1, 100.0), (2, 200.0)):
        clock.now = now
        say(speculator, info(str(number)), number)
    speculator.absorb(absorbed(info("3"), 3, finished_at=150.0))
    assert speculator.forget_subject(Tombstone(subject_of(tenant="a"), 160.0)) == 2
    assert not is_drafted(speculator, ask(), 1)
    assert is_drafted(speculator, ask(), 2)
    assert not is_drafted(speculator, ask(), 3)


def test_a_record_from_a_clock_that_runs_ahead_is_forgotten() -> None:
    """What is here when its tenant is forgotten goes, whatever time it claims."""
    speculator = Speculator(clock=Clock())
    speculator.absorb(absorbed(info("1"), 1, finished_at=500.0))
    speculator.forget_subject(Tombstone(subject_of(tenant="a"), 100.0))
    assert not is_drafted(speculator, ask(), 1)


def test_absorbing_again_makes_a_record_the_newest() -> None:
    """It is held once, and an older one is overwritten before it."""
    speculator = Speculator(memory=MemorySettings.of_capacity(100), clock=Clock())
    first, second = (absorbed(info(str(n)), n, finished_at=99.0) for n in (1, 2))
    speculator.absorb(first)
    speculator.absorb(second)
    speculator.absorb_again(first)
    assert speculator.stats()["sequences"] == 2
    speculator.absorb(absorbed(info("3"), 3, finished_at=99.0))
    assert is_drafted(speculator, ask(), 1)
    assert not is_drafted(speculator, ask(), 2)


def test_the_table_forgets_what_the_ring_has_overwritten() -> None:
    """A memory of bounded size keeps a table of bounded size."""
    speculator = Speculator(memory=MemorySettings.of_capacity(1000), clock=Clock())
    owners = speculator._owners
    for number in range(1000):
        say(speculator, info(str(number)), number)
    assert 1000 // 41 <= len(owners) <= 2 * 1000 // 41 + 2


def phrases_of(number: int, tenant: str = "a") -> PhraseSet:
    shelf = Shelf(f"tenant:{tenant}", tenant)
    return PhraseSet(shelf, "", [np.array(text(number), np.int32)])


def test_phrases_are_drafted_until_the_journal_is_read() -> None:
    """A cold memory drafts from statistics alone; afterwards from what was said itself."""
    speculator = Speculator(clock=Clock())
    speculator.absorb_phrases(phrases_of(1))
    speculator.absorb_phrases(phrases_of(2, "b"))
    speculator.absorb(absorbed(info("3"), 3, finished_at=99.0))
    assert is_drafted(speculator, ask(), 1)
    assert not is_drafted(speculator, ask(), 2)
    assert is_drafted(speculator, ask("b"), 2)
    speculator.drop_phrases()
    speculator.absorb_phrases(phrases_of(4))
    assert not is_drafted(speculator, ask(), 1)
    assert not is_drafted(speculator, ask(), 4)
    assert is_drafted(speculator, ask(), 3)
    speculator.index.check_integrity()


def test_what_goes_with_a_log_is_let_go() -> None:
    """Nothing is noted of logs that were dropped to make room, once the memory is looked after."""
    memory = MemorySettings(max_logs=2, num_neighbours=0)
    speculator = Speculator(memory=memory, clock=Clock())
    for number in range(6):
        say(speculator, info(str(number), f"t{number}"), number)
    assert len(speculator._owners) == 6
    speculator.expire()
    assert len(speculator._owners) == 2


def test_a_slow_log_outlives_a_busy_one_beside_it() -> None:
    """What one workload says seldom is still found after others have said much more."""
    speculator = Speculator(memory=MemorySettings.of_capacity(1000), clock=Clock())
    for number in range(300):
        workload = "slow" if number < 2 else "busy"
        asked = RequestInfo(
            request_id=str(number), tenant="a", session=str(number), workload=workload
        )
        say(speculator, asked, number)
    asks = RequestInfo(request_id="ask", tenant="a", workload="slow", record=False)
    assert is_drafted(speculator, asks, 1)
    speculator.forget_subject(Tombstone(subject_of(tenant="a", session="1"), 100.0))
    assert not is_drafted(speculator, asks, 1)


def test_any_tombstone_clears_the_phrases() -> None:
    """A session's share in them cannot be told: all go; those read later are used."""
    speculator = Speculator(clock=Clock())
    speculator.absorb_phrases(phrases_of(1))
    speculator.forget_subject(Tombstone(subject_of(tenant="x", session="y"), 100.0))
    assert not is_drafted(speculator, ask(), 1)
    speculator.absorb_phrases(phrases_of(2))
    assert is_drafted(speculator, ask(), 2)


tenants = st.sampled_from(["a", "b"])
sessions = st.sampled_from(["", "s", "t"])
groups = st.sampled_from(["", "g"])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(tenants, sessions, groups, st.booleans()), max_size=12),
    tenants,
    sessions,
    st.integers(0, 12),
)
def test_exactly_the_subjects_sequences_go(
    said: list[tuple[str, str, str, bool]], tenant: str, session: str, before: int
) -> None:
    """Against a plain list of who said what when: what is left is drafted, the rest never is."""
    clock = Clock()
    speculator = Speculator(clock=clock)
    for number, (who, where, group, here) in enumerate(said):
        clock.now = float(number)
        request = info(str(number), who, session=where, group=group)
        if here:
            say(speculator, request, number)
        else:
            speculator.absorb(absorbed(request, number, finished_at=float(number)))
    clock.now = 50.0
    speculator.forget_subject(Tombstone(subject_of(tenant=tenant, session=session), float(before)))
    speculator.index.check_integrity()
    for number, (who, where, group, _) in enumerate(said):
        is_gone = who == tenant and session in ("", where) and number <= before
        assert is_drafted(speculator, ask(who, group), number) != is_gone


def test_owners_are_interned_and_let_go() -> None:
    """Sequences of one session share one owner, and nothing of a name outlives them."""
    owners = SequenceOwners(100)
    for number in range(50):
        owners.note(
            5,
            Owner("a", "tenant:a", "s"),
            key=number + 1,
            begun_at=1.0,
            finished_at=1.0,
            is_own=False,
        )
    assert len(owners._owners) == 1
    assert owners.erase(TieredMemory(DraftIndex()), Tombstone(subject_of(tenant="a"), 2.0)) == 50
    assert len(owners) == len(owners._owners) == 0
