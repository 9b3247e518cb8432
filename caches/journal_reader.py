"""Following the journal: warm-up from what is there, then every record as it comes."""

from __future__ import annotations

import heapq
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Final

from paceline.caches.journal_lag import LagHistogram
from paceline.caches.journal_store import (
    BEGINNING,
    PAGE_ENTRIES,
    Entry,
    EntryId,
    JournalStore,
)
from paceline.caches.keys import Shelf
from paceline.caches.phrase_store import PhraseStore
from paceline.caches.phrases import PhraseSet
from paceline.caches.record_block import StoredRecord
from paceline.caches.records import SequenceRecord
from paceline.caches.shelf_reading import RecordDecoder, records_after, records_backwards
from paceline.caches.tombstones import Forgotten, Tombstone

BLOCK_MILLISECONDS: Final = 400
REMEMBERED_REQUESTS: Final = 65_536
STALL_SECONDS: Final = 20.0
"""A reader that was away for longer reads segments too: its place in a tail may be sealed."""
PHRASE_SHELVES: Final = 64
SHELVES_AT_ONCE: Final = 128
LAST_SEQUENCE: Final = 2**63 - 1
CONTROL_INTERVAL: Final = 256
"""Records delivered at the start between two looks for tombstones."""


class RecentRequests:
    """The requests known last, of any origin; safe to use from several threads. O(1)."""

    def __init__(self, capacity: int = REMEMBERED_REQUESTS) -> None:
        self._capacity = capacity
        self._known: OrderedDict[tuple[str, str, str], None] = OrderedDict()
        self._lock = threading.Lock()  # held for a look-up, never while anything waits

    def add(self, record: SequenceRecord) -> bool:
        """Take a request in; False if it is known already."""
        name = (record.scope, record.tenant, record.request_id)
        with self._lock:
            if name in self._known:
                return False
            self._known[name] = None
            if len(self._known) > self._capacity:
                self._known.popitem(last=False)
            return True


class JournalReader:
    """Where one engine stands in every shelf of its model; used by one thread.

    Args:
        origin: own id; own records are skipped, their tokens are in the memory already.
        known: requests whose tokens are in the memory already, whoever publishes them.
        on_record: takes each record.
        on_again: takes records delivered before that are the newest after all (see `warm_up`);
            None delivers everything oldest first.
        on_forget: takes each tombstone, before any record that it does not cover.
        on_phrases: takes what a workload says most.
        on_failure: told of an exception that a callback raised; reading goes on.
        counts: counters to increase: received, warmed_up, forgotten, skipped_own,
            skipped_duplicate, skipped_forgotten, skipped_newer, skipped_malformed.
        clock: monotonic seconds.
        wall_clock: Unix seconds, which records are timed by.
    """

    def __init__(
        self,
        *,
        origin: str,
        known: RecentRequests,
        on_record: Callable[[SequenceRecord], object],
        on_again: Callable[[SequenceRecord], object] | None,
        on_forget: Callable[[Tombstone], object],
        on_phrases: Callable[[PhraseSet], object],
        on_failure: Callable[[Exception], None],
        counts: MutableMapping[str, int],
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.lag = LagHistogram()
        """From a record's finish to its delivery, of those that came while following."""
        self._wall_clock = wall_clock
        self._origin = origin
        self._known = known
        self._on_record = on_record
        self._on_again = on_again
        self._on_forget = on_forget
        self._on_phrases = on_phrases
        self._on_failure = on_failure
        self._counts = counts
        self._clock = clock
        self._decoder = RecordDecoder(counts)
        self._forgotten = Forgotten()
        self._positions: dict[Shelf, EntryId] = {}
        self._bell = BEGINNING
        self._control = BEGINNING
        self._last_look = clock()

    @property
    def positions(self) -> dict[Shelf, EntryId]:
        """The entry of each shelf that was read last; a copy."""
        return dict(self._positions)

    def resume(self, positions: Mapping[Shelf, EntryId]) -> None:
        """Go on where another reader stood; before anything is read."""
        self._positions.update(positions)

    def synchronise(self, store: JournalStore) -> None:
        """After a connection: take in every tombstone, note where the streams stand.

        What is appended from here on rings the bell; `catch_up` reads what came before.
        """
        self._control = store.newest_id(store.keys.control)
        self._bell = store.newest_id(store.keys.bell)
        for tombstone in store.tombstones():
            self._forget(tombstone)
        self._last_look = self._clock()

    def read_phrases(self, store: JournalStore, phrases: PhraseStore) -> None:
        """Deliver the phrases of the shelves written to last; O(phrases)."""
        for shelf, _ in store.shelves()[:PHRASE_SHELVES]:
            for found in phrases.read(shelf):
                self._call(self._on_phrases, found)

    def warm_up(self, store: JournalStore, *, max_tokens: int, head_tokens: int) -> None:
        """Deliver the newest records of all shelves, at most `max_tokens` tokens.

        The newest `head_tokens` come first, so that drafts are of use at once, then the others
        oldest first, then the head `again`: a memory that overwrites what it was given first must
        not lose the newest first. Within each part records come oldest first.
        """
        head: list[SequenceRecord] = []
        rest: list[SequenceRecord] = []
        num_tokens = 0
        for _, record in self._newest_first(store):
            num_tokens += len(record.token_ids)
            if num_tokens > max_tokens:
                break
            if self._on_again is not None and not rest and num_tokens <= head_tokens:
                head.append(record)
                continue
            if not rest:
                self._deliver_old(store, head)
            rest.append(record)
        if not rest:
            self._deliver_old(store, head)
            return
        self._deliver_old(store, rest)
        for record in reversed(head):
            if self._on_again is not None and not self._forgotten.covers(record):
                self._call(self._on_again, record)

    def catch_up(self, store: JournalStore) -> None:
        """After a time away: deliver what every shelf got since, from segments too."""
        for shelf, milliseconds in store.shelves():
            if milliseconds < self.position(shelf)[0]:
                # Redis was restored from older data: what comes now may come under older ids
                self._positions[shelf] = (milliseconds, LAST_SEQUENCE)
                continue
            for entry_id, record in records_after(
                store, shelf, self.position(shelf), self._decoder
            ):
                self._positions[shelf] = entry_id
                if self._deliver(record):
                    self._counts["received"] += 1

    def read(self, store: JournalStore, *, block_milliseconds: int = BLOCK_MILLISECONDS) -> bool:
        """Deliver what has come since the last call, waiting for it; True if anything had."""
        if self._clock() - self._last_look > STALL_SECONDS:
            self.synchronise(store)
            self.catch_up(store)
        rung, tombstones = store.wait(
            self._bell, self._control, block_milliseconds=block_milliseconds
        )
        self._last_look = self._clock()
        self._take_tombstones(tombstones)
        shelves: dict[Shelf, None] = {}
        for position, ring in rung:
            self._bell = position
            if ring is None or ring.shelf in shelves:
                continue
            if ring.origin == self._origin and ring.after == self.position(ring.shelf):
                self._positions[ring.shelf] = ring.last  # nothing but our own: no need to read it
                self._counts["skipped_own"] += ring.num_records
            else:
                shelves[ring.shelf] = None
        waiting = list(shelves)
        while waiting:
            waiting = self._read_tails(store, waiting[:SHELVES_AT_ONCE]) + waiting[SHELVES_AT_ONCE:]
        return bool(rung or tombstones)

    def _read_tails(self, store: JournalStore, shelves: list[Shelf]) -> list[Shelf]:
        """Read a page of each; returns those that have more."""
        pages = store.read_tails({shelf: self.position(shelf) for shelf in shelves})
        for shelf, page in pages.items():
            for entry in page:
                self._positions[shelf] = entry.entry_id
                self._take(entry, shelf)
        return [shelf for shelf, page in pages.items() if len(page) == PAGE_ENTRIES]

    def _take(self, entry: Entry, shelf: Shelf) -> None:
        if entry.origin == self._origin:
            self._counts["skipped_own"] += 1
            return
        record = self._decoder.record(entry, shelf)
        if record is not None and self._deliver(record):
            self._counts["received"] += 1
            self.lag.add(self._wall_clock() - record.finished_at)

    def position(self, shelf: Shelf) -> EntryId:
        """The entry of a shelf that was read last."""
        return self._positions.get(shelf, BEGINNING)

    def _newest_first(self, store: JournalStore) -> Iterator[StoredRecord]:
        """Records of all shelves, newest first; notes where each shelf's tail stands.

        A shelf is opened when no newer record is left in the others, so that a budget that a few
        of thousands of shelves use up costs the reading of those few.
        """
        shelves = store.shelves()
        for shelf, milliseconds in shelves:
            self._positions[shelf] = max(self.position(shelf), (milliseconds, 0))
        heap: list[tuple[float, int, Shelf, StoredRecord | None]] = []
        opened: dict[Shelf, Iterator[StoredRecord]] = {}
        for number, (shelf, milliseconds) in enumerate(shelves):
            # a record may have come since the shelf's time was read
            heapq.heappush(heap, (-float(milliseconds) - 0.5, number, shelf, None))
        while heap:
            _, number, shelf, stored = heapq.heappop(heap)
            if stored is None:
                opened[shelf] = records_backwards(store, shelf, self._decoder)
            else:
                yield stored
            following = next(opened[shelf], None)
            if following is None:
                continue
            if stored is None:
                self._positions[shelf] = max(self._positions[shelf], following.entry_id)
            heapq.heappush(heap, (-float(following.entry_id[0]), number, shelf, following))

    def _deliver_old(self, store: JournalStore, newest_first: list[SequenceRecord]) -> None:
        for number, record in enumerate(reversed(newest_first)):
            if number % CONTROL_INTERVAL == CONTROL_INTERVAL - 1:
                self._look_for_tombstones(store)
            if self._deliver(record):
                self._counts["warmed_up"] += 1

    def _look_for_tombstones(self, store: JournalStore) -> None:
        _, tombstones = store.wait(self._bell, self._control, block_milliseconds=None)
        self._take_tombstones(tombstones)

    def _take_tombstones(self, found: list[tuple[EntryId, Tombstone | None]]) -> None:
        for position, tombstone in found:
            self._control = position
            if tombstone is not None:
                self._forget(tombstone)

    def _deliver(self, record: SequenceRecord) -> bool:
        if record.origin == self._origin:
            self._counts["skipped_own"] += 1
            return False
        if self._forgotten.covers(record):
            self._counts["skipped_forgotten"] += 1
            return False
        if not self._known.add(record):
            self._counts["skipped_duplicate"] += 1
            return False
        return self._call(self._on_record, record)

    def _forget(self, tombstone: Tombstone) -> None:
        if self._forgotten.add(tombstone):
            self._counts["forgotten"] += 1
            self._call(self._on_forget, tombstone)

    def _call(self, callback: Callable[..., object], argument: object) -> bool:
        try:
            callback(argument)
        except Exception as error:  # noqa: BLE001  counted by on_failure: one bad record must not stop the reading
            self._on_failure(error)
            return False
        return True
