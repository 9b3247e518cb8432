"""The journal's upkeep: sealing tails, keeping bounds, quotas and retention, migrating.

Every engine has a keeper and any of them may do any of it; leases only spare double work. What is
done twice, or by one whose lease ran out, is refused by the scripts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Final

from paceline.caches.journal_migration import migrate
from paceline.caches.journal_store import (
    BEGINNING,
    RECORDED,
    Appended,
    Entry,
    EntryId,
    JournalStore,
    SegmentInfo,
    Sizes,
)
from paceline.caches.keys import Shelf
from paceline.caches.phrase_store import PhraseStore
from paceline.caches.phrases import PhraseCounter, PhraseSettings
from paceline.caches.record_block import StoredRecord, decode_block, encode_block
from paceline.caches.records import NewerSchemaError, SequenceRecord, decode_record
from paceline.caches.shelf_editing import drop_oldest
from paceline.errors import JournalError, RecordError

LEASE_SECONDS: Final = 30.0
SWEEP_SECONDS: Final = 30.0
SHORTEST_WAIT_SECONDS: Final = 1.0
EVICTION_SLACK: Final = 20
"""A bound that is passed is undercut by one part in so many: no eviction at each record."""
RETENTION_SLACK: Final = 10
"""A segment is rewritten when its oldest record is over age by one part in so many."""
TOMBSTONE_SECONDS: Final = 30 * 86_400.0
"""No record can be so late as to arrive this long after its tenant was forgotten."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """How much Redis keeps, and how.

    Attributes:
        segment_tokens: a tail of as many tokens is sealed into a segment.
        segment_records: or of as many records.
        seal_after_seconds: records stay in the tail for as long, so that engines that follow it
            find them there.
        max_shelf_tokens: most tokens of one tenant in one sharing scope; the oldest go first.
        max_shelf_bytes: most bytes of the same.
    """

    segment_tokens: int = 131_072
    segment_records: int = 4096
    seal_after_seconds: float = 60.0
    max_shelf_tokens: int = 33_554_432
    max_shelf_bytes: int = 134_217_728

    def __post_init__(self) -> None:
        for name in ("segment_tokens", "segment_records", "max_shelf_tokens", "max_shelf_bytes"):
            if getattr(self, name) < 1:
                raise JournalError(f"{name} is {getattr(self, name)}; give at least 1")
        if self.seal_after_seconds < 0:
            raise JournalError(f"seal_after_seconds is {self.seal_after_seconds}; give 0 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What one tenant may keep in Redis, over all its shelves of one model.

    Attributes:
        max_tokens: most tokens, None for no limit.
        max_bytes: most bytes of records and blocks, None for no limit.
        retention_seconds: how long records are kept, None for ever.
    """

    max_tokens: int | None = None
    max_bytes: int | None = None
    retention_seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_bytes", "retention_seconds"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise JournalError(
                    f"a quota's {name} is {value}; give more than 0, or None for no limit"
                )


QuotaOf = Callable[[str], Quota]


def no_quota(_tenant: str) -> Quota:
    """The default: no tenant has a quota; shelves keep their bounds all the same."""
    return Quota()


class JournalKeeper:
    """Does one engine's share of the upkeep; `count` and `note` from any thread, `work` from one.

    Args:
        holder: this engine's id in leases.
        limits: of shelves and segments.
        quota_of: quota of a tenant.
        counts: counters to increase: sealed, evicted_tokens, phrases, migrated,
            sweeps.
        phrases: which phrases are counted.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        holder: str,
        limits: StoreLimits,
        quota_of: QuotaOf,
        counts: MutableMapping[str, int],
        phrases: PhraseSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._holder = holder
        self._limits = limits
        self._quota_of = quota_of
        self._counts = counts
        self._phrases = phrases or PhraseSettings()
        self._counter = PhraseCounter(self._phrases)
        self._clock = clock
        self._leases = 0
        self._young_until: dict[Shelf, float] = {}
        self._noted: dict[Shelf, None] = {}
        self._lock = threading.Lock()  # held to count a record, never while anything waits

    def count(self, record: SequenceRecord) -> None:
        """Count the phrases of a record that has been recorded. O(tokens)."""
        with self._lock:
            self._counter.add(record)

    def note(self, shelf: Shelf, appended: Appended) -> bool:
        """Look at what an append left behind; True if there is something to do. O(1)."""
        if appended.status != RECORDED:
            return False
        limits = self._limits
        is_full = (
            appended.tail.num_tokens >= limits.segment_tokens
            or appended.shelf.num_tokens > limits.max_shelf_tokens
            or appended.shelf.num_bytes > limits.max_shelf_bytes
            or any(_excess(appended.tenant, self._quota_of(shelf.tenant)))
        )
        if is_full:
            with self._lock:
                self._noted[shelf] = None
        return is_full

    def work(self, store: JournalStore) -> None:
        """Write what was counted; seal and evict where `note` found it due."""
        self._write_phrases(store)
        with self._lock:
            noted, self._noted = self._noted, {}
        shelves = list(noted)
        again: list[Shelf] = []
        try:
            while shelves:
                if self._look_after(store, shelves[0]):
                    again.append(shelves[0])
                del shelves[0]
        finally:  # where the connection is lost, the next one goes on from here
            with self._lock:
                self._noted = dict.fromkeys([*shelves, *again]) | self._noted

    def sweep(self, store: JournalStore) -> bool:
        """What needs doing now and then; False if another engine does it at the moment."""
        if not store.take_lease("sweep", self._holder, seconds=SWEEP_SECONDS * 0.8):
            return False
        self._counts["sweeps"] += 1
        self._counts["migrated"] += migrate(store)
        now = store.now()
        for shelf, _ in store.shelves():
            retention = store.retention_seconds(shelf.tenant)
            if retention:
                self._retire(store, shelf, now, retention)
            store.settle(shelf)
        store.wither(now - TOMBSTONE_SECONDS)
        return True

    def _write_phrases(self, store: JournalStore) -> None:
        """A connection that is lost on the way loses the counts that were not written yet."""
        with self._lock:
            counted = self._counter.take()
        phrases = PhraseStore(store, self._phrases)
        for owner, counts in counted.items():
            retention = store.retention_seconds(owner.shelf.tenant)
            if phrases.add(owner, counts, retention_seconds=retention):
                self._counts["phrases"] += counts.counts.total()

    def _look_after(self, store: JournalStore, shelf: Shelf) -> bool:
        """Seal and evict; True if the tail is full still, of records that are too young."""
        is_young = self._clock() < self._young_until.get(shelf, float("-inf"))
        if not is_young:
            while self._seal(store, shelf):
                self._counts["sealed"] += 1
            is_young = shelf in self._young_until
        limits = self._limits
        bound = Quota(max_tokens=limits.max_shelf_tokens, max_bytes=limits.max_shelf_bytes)
        self._evict(store, [shelf], lambda: store.shelf_sizes(shelf).whole, bound)
        self._evict(
            store,
            store.shelves_of(shelf.tenant),
            lambda: store.tenant_sizes(shelf.tenant),
            self._quota_of(shelf.tenant),
        )
        return is_young

    def _seal(self, store: JournalStore, shelf: Shelf) -> bool:
        """Move the tail's oldest records into one segment, if there are enough of them."""
        self._young_until.pop(shelf, None)
        sizes = store.shelf_sizes(shelf)
        if not self._is_worth_sealing(sizes.tail):
            return False
        entries = self._oldest(store, shelf)
        stored = self._decoded(store, shelf, entries)
        self._leases += 1
        holder, lease = f"{self._holder}:{self._leases}", f"seal:{shelf.name}"
        if stored is None or not store.take_lease(lease, holder, seconds=LEASE_SECONDS):
            return False
        block = encode_block(stored)
        segment = SegmentInfo(
            last_id=stored[-1].entry_id,
            first_milliseconds=stored[0].entry_id[0],
            num_records=len(stored),
            num_tokens=sum(len(item.record.token_ids) for item in stored),
            num_bytes=len(block),
        )
        retention = store.retention_seconds(shelf.tenant)
        return store.seal(
            shelf,
            segment,
            block,
            holder=holder,
            lease=lease,
            epoch=sizes.epoch,
            tail_bytes=sum(len(entry.data) for entry in entries),
            ttl_seconds=retention + retention / RETENTION_SLACK + SWEEP_SECONDS if retention else 0,
        )

    def _is_worth_sealing(self, tail: Sizes) -> bool:
        return (
            tail.num_tokens >= self._limits.segment_tokens
            or tail.num_records >= self._limits.segment_records
        )

    def _oldest(self, store: JournalStore, shelf: Shelf) -> list[Entry]:
        """Entries that are old enough, up to a segment's worth."""
        latest = int((store.now() - self._limits.seal_after_seconds) * 1000)
        entries: list[Entry] = []
        num_tokens, position = 0, BEGINNING
        while True:
            page = store.read_tails({shelf: position}).get(shelf, [])
            if not page:
                return entries
            for entry in page:
                if self._is_worth_sealing(Sizes(len(entries), num_tokens)):
                    return entries
                if entry.entry_id[0] > latest:
                    wait = (entry.entry_id[0] - latest) / 1000
                    self._young_until[shelf] = self._clock() + max(wait, SHORTEST_WAIT_SECONDS)
                    return entries
                entries.append(entry)
                num_tokens += entry.num_tokens
            position = page[-1].entry_id

    def _decoded(
        self, store: JournalStore, shelf: Shelf, entries: list[Entry]
    ) -> list[StoredRecord] | None:
        """The entries' records; None if they cannot be sealed (now)."""
        if not self._is_worth_sealing(Sizes(len(entries), sum(e.num_tokens for e in entries))):
            return None
        stored: list[StoredRecord] = []
        damaged: list[EntryId] = []
        for entry in entries:
            try:
                stored.append(StoredRecord(entry.entry_id, decode_record(entry.data)))
            except NewerSchemaError:
                return None  # sealing is for those who can read it
            except RecordError:
                damaged.append(entry.entry_id)
        if damaged:
            store.cut(shelf, damaged)  # of no use to anybody; the epoch moves on, so seal next time
            return None
        return stored

    def _evict(
        self,
        store: JournalStore,
        shelves: list[Shelf],
        sizes: Callable[[], Sizes],
        quota: Quota,
    ) -> None:
        """Remove the oldest records of some shelves until their sizes fit."""
        excess = _excess(sizes(), quota)
        while any(excess):
            slack = _slack(quota)
            removed = _evict_oldest(store, shelves, excess[0] + slack[0], excess[1] + slack[1])
            if removed.num_records == 0:
                return
            self._counts["evicted_tokens"] += removed.num_tokens
            excess = _excess(sizes(), quota)

    def _retire(self, store: JournalStore, shelf: Shelf, now: float, retention: float) -> None:
        """Remove what is over age."""
        cutoff = int((now - retention) * 1000)
        for segment in store.segments(shelf):
            if segment.last_id[0] < cutoff:
                store.replace(shelf, segment, None)
            elif segment.first_milliseconds < cutoff - int(retention * 1000 / RETENTION_SLACK):
                _drop_before(store, shelf, segment, cutoff)
        position = BEGINNING
        while page := store.read_tails({shelf: position}).get(shelf, []):
            old = [entry.entry_id for entry in page if entry.entry_id[0] < cutoff]
            if old:
                store.cut(shelf, old)
            if len(old) < len(page):
                break
            position = page[-1].entry_id


def _drop_before(store: JournalStore, shelf: Shelf, segment: SegmentInfo, cutoff: int) -> None:
    block = store.block(shelf, segment)
    try:
        stored = decode_block(block) if block is not None else []
    except NewerSchemaError:
        return
    except RecordError:
        stored = []
    old = sum(len(item.record.token_ids) for item in stored if item.entry_id[0] < cutoff)
    drop_oldest(store, shelf, segment, num_tokens=old)


def _evict_oldest(
    store: JournalStore, shelves: list[Shelf], num_tokens: int, num_bytes: int
) -> Sizes:
    """Remove the oldest records, of whichever shelf they are; at most one segment's."""
    oldest: list[tuple[int, Shelf, SegmentInfo | None, list[Entry]]] = []
    for shelf in shelves:
        segments = store.segments(shelf)[:1]
        if segments:
            oldest.append((segments[0].first_milliseconds, shelf, segments[0], []))
            continue
        page = store.read_tails({shelf: BEGINNING}).get(shelf, [])
        if page:
            oldest.append((page[0].entry_id[0], shelf, None, page))
    if not oldest:
        return Sizes()
    oldest.sort(key=lambda found: found[:2])
    _, shelf, segment, page = oldest[0]
    if segment is None:
        latest = oldest[1][0] if len(oldest) > 1 else page[-1].entry_id[0]
        until_then = [page[0], *(e for e in page[1:] if e.entry_id[0] <= latest)]
        return store.cut(shelf, _enough(until_then, num_tokens, num_bytes))
    share = max(num_tokens / max(segment.num_tokens, 1), num_bytes / max(segment.num_bytes, 1))
    if share < 1:
        return drop_oldest(store, shelf, segment, num_tokens=int(share * segment.num_tokens) + 1)
    if not store.replace(shelf, segment, None):
        return Sizes()
    return Sizes(segment.num_records, segment.num_tokens, segment.num_bytes)


def _enough(page: list[Entry], num_tokens: int, num_bytes: int) -> list[EntryId]:
    """The oldest entries that make up as many tokens and bytes, as far as the page goes."""
    ids: list[EntryId] = []
    for entry in page:
        if num_tokens <= 0 and num_bytes <= 0:
            break
        ids.append(entry.entry_id)
        num_tokens -= entry.num_tokens
        num_bytes -= len(entry.data)
    return ids


def _excess(sizes: Sizes, quota: Quota) -> tuple[int, int]:
    """Tokens and bytes above a quota, 0 where they fit."""
    tokens = 0 if quota.max_tokens is None else max(sizes.num_tokens - quota.max_tokens, 0)
    size = 0 if quota.max_bytes is None else max(sizes.num_bytes - quota.max_bytes, 0)
    return tokens, size


def _slack(quota: Quota) -> tuple[int, int]:
    return (quota.max_tokens or 0) // EVICTION_SLACK, (quota.max_bytes or 0) // EVICTION_SLACK
