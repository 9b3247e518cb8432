"""Stats, export and forgetting through a real Redis: exact, final, and followed by every engine."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
import pytest

from journals import (
    MODEL,
    SHELF,
    Engine,
    append,
    check_accounts,
    keeper,
    open_store,
    record,
    stored_ids,
)
from paceline.caches import ModelFingerprint
from paceline.caches.governance import MemoryGovernor
from paceline.caches.journal_store import REFUSED, JournalStore, Sizes
from paceline.caches.keys import LegacyKeys, Shelf
from paceline.caches.records import encode_record
from paceline.caches.tombstones import Forgotten, Tombstone, subject_of, subjects
from paceline.errors import JournalError
from redis_server import RedisServer
from waiting import wait_until

pytestmark = pytest.mark.redis

OTHER = ModelFingerprint(model="other", tokenizer="t")


@pytest.fixture
def governor(store: JournalStore) -> Iterator[MemoryGovernor]:
    """Of a Redis that two models have registered in."""
    store.register(MODEL)
    store.register(OTHER)
    return MemoryGovernor(store.client)


def fill(store: JournalStore, count: int = 30) -> None:
    """Two tenants, three sessions each, one of them in a group too; most of it sealed."""
    made, _ = keeper(segment_tokens=50)
    number = 0
    for tenant in ("a", "b"):
        for scope in (f"tenant:{tenant}", "group:g"):
            for step in range(count):
                one = record(number, scope=scope, tenant=tenant, session=f"s{step % 3}")
                made.note(Shelf(scope, tenant), append(store, one)[0])
                number += 1
            made.work(store)


def test_forgetting_a_tenant_leaves_nothing_of_it(
    store: JournalStore, governor: MemoryGovernor
) -> None:
    """Records, segments, accounts and shelves of the tenant go, in every scope; others stay."""
    fill(store)
    receipt = governor.forget(tenant="a")
    assert receipt.removed.num_records == 60
    assert receipt.removed.num_tokens == 600
    assert receipt.num_models == 2
    assert store.tenant_sizes("a") == Sizes()
    assert [shelf.tenant for shelf, _ in store.shelves()] == ["b", "b"]
    assert list(store.client.scan_iter("*tenant%3Aa*")) == []
    assert list(store.client.scan_iter("*:a")) == []
    assert check_accounts(store, "b").num_records == 60
    assert governor.forget(tenant="a").removed == Sizes()


def test_forgetting_a_session_keeps_the_others(
    store: JournalStore, governor: MemoryGovernor
) -> None:
    """Segments are written anew without the session; order and accounts of the rest hold."""
    fill(store)
    left = {
        shelf: [i for i in stored_ids(store, shelf) if int(i.split("-")[1]) % 3 != 1]
        for shelf, _ in store.shelves()
        if shelf.tenant == "a"
    }
    assert governor.forget(tenant="a", session="s1").removed.num_records == 20
    assert {shelf: stored_ids(store, shelf) for shelf in left} == left
    assert {r.session for _, r in governor.export("a")} == {"s0", "s2"}
    assert check_accounts(store, "a").num_records == 40
    assert check_accounts(store, "b").num_records == 60


def test_forgetting_a_scope_takes_every_tenant_of_it(
    store: JournalStore, governor: MemoryGovernor
) -> None:
    """A group can be forgotten as such; the tenants' own scopes stay."""
    fill(store)
    assert governor.forget(scope="group:g").removed.num_records == 60
    assert {shelf.scope for shelf, _ in store.shelves()} == {"tenant:a", "tenant:b"}
    for tenant in ("a", "b"):
        assert check_accounts(store, tenant).num_records == 30


def test_forgetting_up_to_a_time(store: JournalStore, governor: MemoryGovernor) -> None:
    """What began later stays, in tails and in segments."""
    made, _ = keeper(segment_tokens=50)
    appended = append(store, *(record(n, finished_at=1000.0 + n) for n in range(12)))
    made.note(SHELF, appended[-1])
    made.work(store)
    receipt = governor.forget(tenant="a", before=1006.5)
    assert (receipt.before, receipt.removed.num_records) == (1006.5, 7)
    assert stored_ids(store) == [f"request-{n}" for n in range(7, 12)]
    check_accounts(store, "a")


def test_what_arrives_after_a_tombstone_is_refused(
    store: JournalStore, governor: MemoryGovernor
) -> None:
    """A record of a request that had begun is not taken in; a later request's is."""
    receipt = governor.forget(tenant="a", session="s")
    late = record(1, session="s", finished_at=receipt.before - 1)
    assert append(store, late)[0].status == REFUSED
    assert append(store, record(2, session="t", finished_at=receipt.before - 1))[0].status == 1
    assert append(store, record(3, session="s", finished_at=receipt.before + 1))[0].status == 1
    assert stored_ids(store) == ["request-2", "request-3"]
    governor.forget(tenant="a", session="s", before=receipt.before - 100)
    assert [t.before for t in store.tombstones()] == [receipt.before]


def test_a_record_counts_from_when_its_request_began() -> None:
    """A request that was running when its tenant was forgotten is forgotten, whenever it ends."""
    import msgspec

    tombstone = Tombstone(subject_of(tenant="a"), 100.0)
    running = msgspec.structs.replace(record(1, finished_at=101.0), started_at=99.0)
    assert Forgotten([tombstone]).covers(running)
    assert not Forgotten([tombstone]).covers(record(1, finished_at=101.0))


def test_subjects_do_not_run_into_each_other() -> None:
    """Names that concatenate alike, and a scope named like a tenant, are different subjects."""
    assert subject_of(tenant="ab", session="c") != subject_of(tenant="a", session="bc")
    assert subject_of(tenant="x") != subject_of(scope="x")
    assert subject_of(tenant="a") in subjects(tenant="a", scope="s", session="z")
    assert len(set(subjects(tenant="a", scope="a", session="a"))) == 4


def test_engines_are_told_within_a_second_and_new_ones_before_they_load(
    redis_server: RedisServer,
    store: JournalStore,
    governor: MemoryGovernor,
    engine: Callable[..., Engine],
) -> None:
    """A running engine gets the tombstone; one that starts later gets it before any record."""
    a, b = engine(redis_server.url, "A"), engine(redis_server.url, "B")
    wait_until(b.journal.warmed_up.is_set)
    a.journal.publish(record(1))
    wait_until(lambda: b.ids() == ["request-1"])
    receipt = governor.forget(tenant="a")
    told = Tombstone(subject_of(tenant="a"), receipt.before)
    wait_until(lambda: b.forgotten == [told], seconds=1.0)
    order: list[str] = []
    late = engine(redis_server.url, "C", on_again=lambda r: order.append(r.request_id))
    wait_until(late.journal.warmed_up.is_set)
    assert late.forgotten == [told]
    assert late.got == []
    a.journal.publish(record(2, finished_at=receipt.before - 1))
    a.journal.publish(record(3, finished_at=receipt.before + 1))
    wait_until(lambda: late.ids() == ["request-3"])
    assert a.journal.stats()["refused_forgotten"] == 1


def test_a_reader_refuses_what_an_older_engine_wrote(
    redis_server: RedisServer,
    store: JournalStore,
    governor: MemoryGovernor,
    engine: Callable[..., Engine],
) -> None:
    """A forgotten record that reached Redis past the script is not delivered all the same."""
    receipt = governor.forget(tenant="a")
    b = engine(redis_server.url, "B")
    wait_until(b.journal.warmed_up.is_set)
    late = record(1, finished_at=receipt.before - 1)
    store.client.xadd(store.keys.tail(SHELF), {"r": encode_record(late), "n": 10, "o": "x"})
    append(store, record(2, finished_at=receipt.before + 1))
    wait_until(lambda: b.ids() == ["request-2"])
    assert b.journal.stats()["skipped_forgotten"] == 1


def test_stats_and_export_say_what_is_there(
    redis_server: RedisServer, store: JournalStore, governor: MemoryGovernor
) -> None:
    """Sizes by model as accounted for; export yields every record once, by session if asked."""
    fill(store)
    other = open_store(redis_server.url, OTHER)
    with closing(other.client):
        append(other, record(1000))
    both = {memory.model: memory for memory in governor.stats("a")}
    assert both["m"].scopes == ("group:g", "tenant:a")
    assert both["m"].sizes == check_accounts(store, "a")
    assert both["m"].num_segments > 2
    assert both["other"].sizes.num_records == 1
    exported = [(of.model, r.request_id) for of, r in governor.export("a")]
    assert len(exported) == len(set(exported)) == 61
    assert ("other", "request-1000") in exported
    session = [r for _, r in governor.export("a", session="s2")]
    assert len(session) == 20
    first = min(session, key=lambda r: int(r.request_id.split("-")[1]))
    np.testing.assert_array_equal(first.token_ids, record(2).token_ids)
    assert governor.stats("nobody") == []


def test_what_an_older_paceline_wrote_is_forgotten_too(
    store: JournalStore, governor: MemoryGovernor
) -> None:
    """Streams of layout 1, of models that no engine of this build has served, are looked through.

    What an older engine that runs on writes of the tenant is refused when it is moved.
    """
    legacy = LegacyKeys("0123456789abcdef")

    def write(number: int) -> None:
        one = record(number, finished_at=100.0)
        store.client.sadd(legacy.scopes, one.scope)
        store.client.xadd(legacy.journal(one.scope), {"r": encode_record(one)})

    write(1)
    assert governor.forget(tenant="a").removed.num_records == 1
    write(2)
    assert list(governor.export("a")) == []
    assert list(store.client.scan_iter("*tenant%3Aa*")) == []


def test_nothing_or_everything_is_not_a_subject(governor: MemoryGovernor) -> None:
    """Forgetting needs exactly one of tenant and scope."""
    with pytest.raises(JournalError, match="exactly one"):
        governor.forget()
    with pytest.raises(JournalError, match="exactly one"):
        governor.forget(tenant="a", scope="s")
    with pytest.raises(JournalError, match="a time that has passed"):
        governor.forget(tenant="a", before=time.time() + 3600)


def test_old_tombstones_wither(store: JournalStore, governor: MemoryGovernor) -> None:
    """A tombstone goes once no record can be that late, a newer one stays."""
    governor.forget(tenant="a", before=time.time() - 100 * 86_400)
    governor.forget(tenant="b")
    made, _ = keeper()
    assert made.sweep(store)
    assert [t.subject for t in store.tombstones()] == [subject_of(tenant="b")]


def test_a_damaged_segment_is_forgotten_whole(
    store: JournalStore, governor: MemoryGovernor
) -> None:
    """What nobody can read might be the session's: it goes, and the accounts with it."""
    fill(store)
    shelf = Shelf("tenant:a", "a")
    segment = store.segments(shelf)[0]
    key = store.keys.segment(shelf, f"{segment.last_id[0]}-{segment.last_id[1]}")
    store.client.set(key, zlib.compress(b"?"))
    governor.forget(tenant="a", session="s0")
    assert segment.last_id not in [s.last_id for s in store.segments(shelf)]
    check_accounts(store, "a")
