"""Reading a shelf whole, while others write, seal and evict it: nothing twice, nothing lost."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping

from paceline.caches.journal_store import BEGINNING, Entry, EntryId, JournalStore
from paceline.caches.keys import Shelf
from paceline.caches.record_block import StoredRecord, decode_block
from paceline.caches.records import NewerSchemaError, SequenceRecord, decode_record
from paceline.errors import RecordError


class RecordDecoder:
    """Decodes what Redis holds; what cannot be used is skipped and counted.

    Args:
        counts: counters to increase: skipped_newer, skipped_malformed.
    """

    def __init__(self, counts: MutableMapping[str, int]) -> None:
        self._counts = counts

    def record(self, entry: Entry, shelf: Shelf) -> SequenceRecord | None:
        """An entry's record; None if it cannot be used or does not belong where it stands."""
        try:
            record = decode_record(entry.data)
        except NewerSchemaError:
            self._counts["skipped_newer"] += 1
            return None
        except RecordError:
            self._counts["skipped_malformed"] += 1
            return None
        return record if self._belongs(record, shelf) else None

    def block(self, data: bytes, shelf: Shelf) -> list[StoredRecord]:
        """A block's records, [] if it cannot be used."""
        try:
            stored = decode_block(data)
        except NewerSchemaError:
            self._counts["skipped_newer"] += 1
            return []
        except RecordError:
            self._counts["skipped_malformed"] += 1
            return []
        return [item for item in stored if self._belongs(item.record, shelf)]

    def _belongs(self, record: SequenceRecord, shelf: Shelf) -> bool:
        """A record of another scope under a shelf's key would be a leak: it counts as malformed."""
        if (record.scope, record.tenant) == (shelf.scope, shelf.tenant):
            return True
        self._counts["skipped_malformed"] += 1
        return False


def records_after(
    store: JournalStore, shelf: Shelf, after: EntryId, decoder: RecordDecoder
) -> Iterator[StoredRecord]:
    """A shelf's records after a position, oldest first, each once.

    The tail is read before the index: what is sealed in between stands in a segment.
    """
    position = after
    while True:
        page = store.read_tails({shelf: position}).get(shelf, [])
        segments = store.segments(shelf, position)
        for segment in segments:
            block = store.block(shelf, segment)
            for stored in decoder.block(block, shelf) if block is not None else ():
                if stored.entry_id > position:
                    yield stored
            position = max(position, segment.last_id)
        for entry in page:
            if entry.entry_id > position:
                position = entry.entry_id
                record = decoder.record(entry, shelf)
                if record is not None:
                    yield StoredRecord(entry.entry_id, record)
        if not page and not segments:
            return


def records_backwards(
    store: JournalStore, shelf: Shelf, decoder: RecordDecoder
) -> Iterator[StoredRecord]:
    """A shelf's records, newest first, each once."""
    oldest: EntryId | None = None
    for entry in store.tail_backwards(shelf):
        oldest = entry.entry_id
        record = decoder.record(entry, shelf)
        if record is not None:
            yield StoredRecord(entry.entry_id, record)
    for segment in reversed(store.segments(shelf, BEGINNING)):
        block = store.block(shelf, segment)
        for stored in reversed(decoder.block(block, shelf) if block is not None else []):
            if oldest is None or stored.entry_id < oldest:
                yield stored
