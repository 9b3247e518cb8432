"""Sealing, bounds, quotas, retention and migration, on a real Redis and beside other writers."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial

import pytest

from journals import (
    MODEL,
    SHELF,
    Engine,
    append,
    check_accounts,
    counted,
    keeper,
    open_store,
    record,
    stored_ids,
)
from paceline.caches.governance import MemoryGovernor
from paceline.caches.journal_keeper import Quota, StoreLimits
from paceline.caches.journal_store import BEGINNING, Appending, JournalStore, SegmentInfo, Sizes
from paceline.caches.keys import LegacyKeys, Shelf, namespace_of
from paceline.caches.record_block import StoredRecord, encode_block
from paceline.caches.records import decode_record, encode_record
from paceline.errors import JournalError
from redis_server import RedisServer
from waiting import wait_until

pytestmark = pytest.mark.redis


def ids(*numbers: int) -> list[str]:
    return [f"request-{number}" for number in numbers]


def test_a_full_tail_is_sealed_and_reads_the_same(store: JournalStore) -> None:
    """Records move from the tail into segments of the size asked for; none changes or is lost."""
    appended = append(store, *(record(number) for number in range(25)))
    made, counts = keeper(segment_tokens=100)
    assert not made.note(SHELF, appended[5])
    assert made.note(SHELF, appended[-1])
    made.work(store)
    assert counts["sealed"] == 2
    assert [s.num_records for s in store.segments(SHELF)] == [10, 10]
    assert store.shelf_sizes(SHELF).tail.num_records == 5
    assert stored_ids(store) == ids(*range(25))
    assert check_accounts(store, "a").num_records == 25


def test_young_records_stay_in_the_tail(store: JournalStore) -> None:
    """What engines may still be reading from the tail is not sealed, and is looked at later."""
    appended = append(store, *(record(number) for number in range(25)))
    made, counts = keeper(segment_tokens=100, seal_after_seconds=60.0)
    made.note(SHELF, appended[-1])
    made.work(store)
    made.work(store)
    assert counts["sealed"] == 0
    assert store.shelf_sizes(SHELF).tail.num_records == 25


def test_two_sealers_at_once_seal_once(redis_server: RedisServer, store: JournalStore) -> None:
    """Four keepers on one full shelf: each record ends in one segment, and accounts agree."""
    appended = append(store, *(record(number) for number in range(200)))
    failures: list[Exception] = []

    def work(name: str) -> None:
        own = open_store(redis_server.url)
        try:
            with closing(own.client):
                made, _ = keeper(name, segment_tokens=100)
                for _ in range(20):
                    made.note(SHELF, appended[-1])
                    made.work(own)
        except Exception as error:  # noqa: BLE001 -- told by the test's thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"K{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert [s.num_records for s in store.segments(SHELF)] == [10] * 20
    assert stored_ids(store) == ids(*range(200))
    check_accounts(store, "a")


def _sealing(store: JournalStore, count: int) -> tuple[SegmentInfo, bytes, int, str]:
    entries = store.read_tails({SHELF: BEGINNING})[SHELF][:count]
    stored = [StoredRecord(e.entry_id, decode_record(e.data)) for e in entries]
    block = encode_block(stored)
    tokens = sum(e.num_tokens for e in entries)
    segment = SegmentInfo(entries[-1].entry_id, entries[0].entry_id[0], count, tokens, len(block))
    return segment, block, sum(len(e.data) for e in entries), store.shelf_sizes(SHELF).epoch


@pytest.mark.parametrize("what", ["lease lost", "record cut", "shelf emptied and filled anew"])
def test_a_late_sealer_is_fenced_off(store: JournalStore, what: str) -> None:
    """A sealer that slept while others went on brings nothing back and loses nothing."""
    append(store, *(record(number) for number in range(10)))
    segment, block, tail_bytes, epoch = _sealing(store, 10)
    assert store.take_lease("seal", "slow", seconds=30)
    assert not store.take_lease("seal", "other", seconds=30)
    if what == "lease lost":
        store.client.delete(store.keys.lease("seal"))
        assert store.take_lease("seal", "other", seconds=30)
    elif what == "record cut":
        first = store.read_tails({SHELF: BEGINNING})[SHELF][0]
        assert store.cut(SHELF, [first.entry_id]).num_records == 1
        append(store, record(10))
    else:
        every = store.read_tails({SHELF: BEGINNING})[SHELF]
        assert store.cut(SHELF, [e.entry_id for e in every]).num_records == 10
        assert store.settle(SHELF)
        append(store, *(record(number) for number in range(20, 30)))
    before = stored_ids(store)
    sealed = store.seal(
        SHELF,
        segment,
        block,
        holder="slow",
        lease="seal",
        epoch=epoch,
        tail_bytes=tail_bytes,
        ttl_seconds=0,
    )
    assert not sealed
    assert stored_ids(store) == before
    check_accounts(store, "a")


def test_a_shelf_keeps_its_bound_oldest_first(store: JournalStore) -> None:
    """Tokens and bytes of a shelf stay within bounds; what remains is the newest, unbroken."""
    made, counts = keeper(segment_tokens=100, max_shelf_tokens=450)
    for number in range(200):
        if made.note(SHELF, append(store, record(number))[0]):
            made.work(store)
    left = stored_ids(store)
    assert left == ids(*range(200 - len(left), 200))
    assert 400 <= check_accounts(store, "a").num_tokens <= 450
    assert counts["evicted_tokens"] == 2000 - 10 * len(left)
    small, _ = keeper(segment_tokens=100, max_shelf_bytes=300)
    small.note(SHELF, append(store, record(200))[0])
    small.work(store)
    assert check_accounts(store, "a").num_bytes <= 300
    assert stored_ids(store)[-1] == "request-200"


def test_a_quota_evicts_the_tenants_oldest_over_all_scopes(store: JournalStore) -> None:
    """The oldest of the tenant goes, whichever scope it is in; other tenants keep everything."""
    made, _ = keeper(quota_of=lambda tenant: Quota(max_tokens=100 if tenant == "a" else None))
    group, other = Shelf("group:g", "a"), Shelf("group:g", "b")
    append(store, *(record(n, scope="group:g", tenant="b") for n in range(20)))
    for number in range(20):
        scope = "tenant:a" if number % 2 else "group:g"
        appended = append(store, record(number, scope=scope))[0]
        made.note(Shelf(scope, "a"), appended)
        made.work(store)
        time.sleep(0.002)  # Redis's clock, by which shelves are compared, counts milliseconds
    kept = sorted(stored_ids(store) + stored_ids(store, group))
    assert kept == sorted(ids(*range(20 - len(kept), 20)))
    assert 90 <= check_accounts(store, "a").num_tokens <= 100
    assert len(stored_ids(store, other)) == 20
    assert check_accounts(store, "b").num_tokens == 200


def test_retention_removes_what_is_over_age(store: JournalStore) -> None:
    """Segments, parts of segments and tail entries go when they are too old, then the accounts."""
    made, _ = keeper(segment_tokens=40)
    keep = partial(append, store, retention_seconds=0.3)
    appended = keep(*(record(n) for n in range(4)))
    made.note(SHELF, appended[-1])
    made.work(store)
    keep(*(record(n) for n in range(4, 6)))
    assert len(store.segments(SHELF)) == 1
    time.sleep(0.2)
    keep(*(record(n) for n in range(6, 8)))
    made.note(SHELF, keep(record(8), record(9))[-1])
    made.work(store)
    assert len(store.segments(SHELF)) == 2
    time.sleep(0.15)
    stranger, _ = keeper("K2")  # of an engine that has not served the tenant
    assert stranger.sweep(store)
    assert stored_ids(store) == ids(*range(6, 10))
    check_accounts(store, "a")
    store.client.delete(store.keys.lease("sweep"))
    time.sleep(0.35)
    assert made.sweep(store)
    assert store.shelves() == []
    assert store.shelves_of("a") == []
    assert store.tenant_sizes("a") == Sizes()


def test_an_expired_tail_leaves_the_accounts(store: JournalStore) -> None:
    """With no engine left Redis itself drops the records; the next sweep settles the accounts."""
    append(store, *(record(n) for n in range(5)), retention_seconds=0.05)
    append(store, record(9, scope="group:g"))
    wait_until(lambda: not store.client.exists(store.keys.tail(SHELF)))
    assert keeper()[0].sweep(store)
    assert check_accounts(store, "a").num_records == 1
    assert store.shelves_of("a") == [Shelf("group:g", "a")]


def test_what_the_last_record_said_of_its_retention_holds(store: JournalStore) -> None:
    """It is the tenant's in all scopes; records that say nothing leave it as it is."""
    other = Shelf("group:g", "a")
    append(store, record(1), retention_seconds=500.0)
    append(store, record(2, scope="group:g"), retention_seconds=None)
    assert store.retention_seconds("a") == 500
    assert 0 < store.client.pttl(store.keys.tail(other)) <= 500_000
    append(store, record(3), retention_seconds=0.0)
    append(store, record(4), retention_seconds=None)
    assert store.retention_seconds("a") == 0
    assert store.client.pttl(store.keys.tail(SHELF)) == -1


def test_only_one_engine_sweeps(store: JournalStore) -> None:
    """While one has swept, another finds it done."""
    assert keeper("K1")[0].sweep(store)
    assert not keeper("K2")[0].sweep(store)


def test_accounts_are_exact_whatever_happens_at_once(
    redis_server: RedisServer, store: JournalStore
) -> None:
    """Writers, sealers, evictors and forgetting side by side: the accounts equal a recount."""
    shelves = [Shelf(scope, tenant) for scope in ("s1", "s2") for tenant in ("a", "b")]
    failures: list[Exception] = []

    def run(number: int) -> None:
        rng = random.Random(number)  # noqa: S311 -- no secret
        own = open_store(redis_server.url)
        try:
            with closing(own.client):
                made, _ = keeper(
                    f"K{number}",
                    segment_tokens=60,
                    max_shelf_tokens=600,
                    quota_of=lambda tenant: Quota(max_tokens=700 if tenant == "a" else None),
                )
                for step in range(120):
                    shelf = rng.choice(shelves)
                    one = record(
                        1000 * number + step,
                        scope=shelf.scope,
                        tenant=shelf.tenant,
                        session=str(rng.randrange(4)),
                        num_tokens=rng.randrange(1, 20),
                    )
                    if made.note(shelf, append(own, one)[0]):
                        made.work(own)
                    if step % 40 == 39:
                        MemoryGovernor(own.client).forget(
                            tenant=shelf.tenant, session=str(rng.randrange(4))
                        )
        except Exception as error:  # noqa: BLE001 -- told by the test's thread
            failures.append(error)

    store.register(MODEL)
    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for tenant in ("a", "b"):
        assert check_accounts(store, tenant).num_records > 0


def test_an_engine_seals_by_itself(
    redis_server: RedisServer, store: JournalStore, engine: Callable[..., Engine]
) -> None:
    """Publishing alone makes segments; others and a restarted engine get everything once."""
    limits = StoreLimits(segment_tokens=100, seal_after_seconds=0.5)
    a, b = (engine(redis_server.url, name, limits=limits) for name in "AB")
    wait_until(b.journal.warmed_up.is_set)
    for number in range(55):
        a.journal.publish(record(number))
    wait_until(lambda: len(store.segments(SHELF)) == 5)
    assert b.ids() == ids(*range(55))
    late = engine(redis_server.url, "C")
    wait_until(late.journal.warmed_up.is_set)
    assert late.ids() == ids(*range(55))


def test_what_was_sealed_while_an_engine_was_away_reaches_it(
    redis_server: RedisServer, store: JournalStore, engine: Callable[..., Engine]
) -> None:
    """An engine whose place in the tail is gone reads on from the segments, each record once."""
    b = engine(redis_server.url, "B")
    wait_until(b.journal.warmed_up.is_set)
    append(store, *(record(n) for n in range(5)))
    wait_until(lambda: len(b.got) == 5)
    b.journal._reader._last_look = float("-inf")
    held = threading.Event()
    read, going_on = b.journal._reader.read, threading.Event()

    def pause(*arguments: object, **options: object) -> bool:
        held.set()
        going_on.wait(10)
        b.journal._reader._last_look = float("-inf")
        return read(*arguments, **options)

    b.journal._reader.read = pause  # type: ignore[method-assign]
    assert held.wait(5)
    appended = append(store, *(record(n) for n in range(5, 45)))
    made, counts = keeper(segment_tokens=100)
    made.note(SHELF, appended[-1])
    made.work(store)
    assert counts["sealed"] == 4
    going_on.set()
    wait_until(lambda: len(b.got) >= 45)
    assert b.ids() == ids(*range(45))


def test_warm_up_delivers_the_newest_first_and_again_at_the_end(
    redis_server: RedisServer, store: JournalStore, engine: Callable[..., Engine]
) -> None:
    """The head can be drafted from at once; after all it is the newest again."""
    appended = append(store, *(record(n) for n in range(30)))
    made, _ = keeper(segment_tokens=100)
    made.note(SHELF, appended[-1])
    made.work(store)
    again: list[str] = []
    late = engine(
        redis_server.url,
        "C",
        head_tokens=45,
        warm_up_tokens=200,
        on_again=lambda r: again.append(r.request_id),
    )
    wait_until(late.journal.warmed_up.is_set)
    assert late.ids() == ids(*range(26, 30), *range(10, 26))
    assert again == ids(*range(26, 30))


def test_records_of_layout_1_are_moved_once(
    redis_server: RedisServer, store: JournalStore, engine: Callable[..., Engine]
) -> None:
    """However many engines migrate, each old record arrives once, and the old keys are gone."""
    legacy = LegacyKeys(namespace_of(MODEL))
    scopes = ["tenant:a", "group:x/y {z}:*"]
    for number in range(300):
        scope = scopes[number % 2]
        store.client.sadd(legacy.scopes, scope)
        store.client.xadd(
            legacy.journal(scope), {"r": encode_record(record(number, scope=scope, origin="old"))}
        )
    store.client.xadd(legacy.journal("tenant:a"), {"r": b"garbage"})
    engines = [engine(redis_server.url, name) for name in "AB"]
    wait_until(lambda: all(len(e.got) == 300 for e in engines))
    for e in engines:
        assert sorted(e.ids()) == sorted(ids(*range(300)))
    assert stored_ids(store) == ids(*range(0, 300, 2))
    assert list(store.client.scan_iter("paceline:1:*")) == []
    assert check_accounts(store, "a").num_records == 300


def test_an_older_engine_may_go_on_beside(store: JournalStore) -> None:
    """What it writes after a migration is moved at the next; what is newer than us stays."""
    import msgspec

    legacy = LegacyKeys(namespace_of(MODEL))
    made, counts = keeper()
    for number in range(3):
        store.client.sadd(legacy.scopes, "tenant:a")
        store.client.xadd(legacy.journal("tenant:a"), {"r": encode_record(record(number))})
        assert made.sweep(store)
        store.client.delete(store.keys.lease("sweep"))
        assert stored_ids(store) == ids(*range(number + 1))
    assert counts["migrated"] == 3
    fields = msgspec.msgpack.decode(encode_record(record(9)))
    store.client.sadd(legacy.scopes, "tenant:a")
    newer = msgspec.msgpack.encode([2, *fields[1:]])
    store.client.xadd(legacy.journal("tenant:a"), {"r": newer})
    assert made.sweep(store)
    assert store.client.xlen(legacy.journal("tenant:a")) == 1


def test_a_crash_between_moving_and_removing_cannot_happen(store: JournalStore) -> None:
    """An entry that another has moved is not appended again, whenever its append comes."""
    legacy = LegacyKeys(namespace_of(MODEL))
    stream = legacy.journal("tenant:a")
    entry_id = store.client.xadd(stream, {"r": encode_record(record(1))}).decode()
    moving = Appending(
        record(1), encode_record(record(1)), remember_seconds=0, source=(stream, entry_id)
    )
    assert [store.append([moving])[0].status for _ in range(3)] == [1, -2, -2]
    assert counted(store, SHELF).num_records == 1


def test_limits_of_nothing_are_named() -> None:
    """A bound that would keep nothing is refused with the value."""
    with pytest.raises(JournalError, match="segment_tokens is 0"):
        StoreLimits(segment_tokens=0)
    with pytest.raises(JournalError, match="max_tokens is 0"):
        Quota(max_tokens=0)
