"""Taking records out of a shelf, wherever they stand, while others write and seal it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from paceline.caches.journal_store import (
    BEGINNING,
    PAGE_ENTRIES,
    Entry,
    JournalStore,
    SegmentInfo,
    Sizes,
)
from paceline.caches.keys import Shelf
from paceline.caches.phrase_store import drop_phrases
from paceline.caches.record_block import StoredRecord, decode_block, encode_block
from paceline.caches.records import decode_record
from paceline.errors import RecordError

MOST_ATTEMPTS: Final = 100
"""Times that another changes a segment under us before something must be wrong."""

Doomed = Callable[[StoredRecord], bool]
"""Whether a record goes."""


def add_sizes(a: Sizes, b: Sizes) -> Sizes:
    """Both together."""
    return Sizes(
        a.num_records + b.num_records, a.num_tokens + b.num_tokens, a.num_bytes + b.num_bytes
    )


def remove_from_shelf(store: JournalStore, shelf: Shelf, doomed: Doomed) -> Sizes:
    """Remove every record that is doomed; returns what is gone.

    What cannot be read goes too: nobody could say what it holds. The tail is cleaned first: what
    is sealed meanwhile stands in a segment by the time that these are listed, and a seal of
    records read before the cut is refused. O(records of the shelf).
    """
    removed = remove_from_tail(store, shelf, doomed)
    for segment in store.segments(shelf):
        removed = add_sizes(removed, remove_from_segment(store, shelf, segment, doomed))
    drop_phrases(store, shelf)  # counts of all sessions together: nothing can be taken out of them
    store.settle(shelf)
    return removed


def remove_from_tail(store: JournalStore, shelf: Shelf, doomed: Doomed) -> Sizes:
    """Remove the doomed of a shelf's tail; returns what is gone."""
    removed, position = Sizes(), BEGINNING
    while True:
        page = store.read_tails({shelf: position}).get(shelf, [])
        if not page:
            return removed
        position = page[-1].entry_id
        ids = [entry.entry_id for entry in page if _is_doomed(entry, doomed)]
        if ids:
            removed = add_sizes(removed, store.cut(shelf, ids))
        if len(page) < PAGE_ENTRIES:
            return removed


def remove_from_segment(
    store: JournalStore, shelf: Shelf, segment: SegmentInfo, doomed: Doomed
) -> Sizes:
    """Write a segment anew without the doomed; returns what is gone."""
    for _ in range(MOST_ATTEMPTS):
        data = store.block(shelf, segment)
        kept = [item for item in _readable(data) if not doomed(item)]
        if len(kept) == segment.num_records:
            return Sizes()
        removed = _keep_only(store, shelf, segment, kept)
        if removed is not None:
            return removed
        now = [s for s in store.segments(shelf) if s.last_id == segment.last_id]
        if not now:
            return Sizes()
        segment = now[0]
    raise RecordError(
        f"segment {segment.member} was changed {MOST_ATTEMPTS} times while it was rewritten; "
        "several processes forget at once: try again"
    )


def _keep_only(
    store: JournalStore, shelf: Shelf, segment: SegmentInfo, kept: list[StoredRecord]
) -> Sizes | None:
    """Replace a segment by what is kept of it; None if it is not there any more."""
    block = encode_block(kept) if kept else b""
    new = (
        SegmentInfo(
            last_id=segment.last_id,
            first_milliseconds=kept[0].entry_id[0],
            num_records=len(kept),
            num_tokens=sum(len(item.record.token_ids) for item in kept),
            num_bytes=len(block),
        )
        if kept
        else None
    )
    if not store.replace(shelf, segment, new, block):
        return None
    left = Sizes() if new is None else Sizes(new.num_records, new.num_tokens, new.num_bytes)
    return Sizes(
        segment.num_records - left.num_records,
        segment.num_tokens - left.num_tokens,
        segment.num_bytes - left.num_bytes,
    )


def drop_oldest(
    store: JournalStore, shelf: Shelf, segment: SegmentInfo, *, num_tokens: int
) -> Sizes:
    """Write a segment anew without its oldest records, at least `num_tokens` tokens of them.

    Nothing happens if another has changed it meanwhile.
    """
    kept = _readable(store.block(shelf, segment))
    gone = 0
    while kept and gone < num_tokens:
        gone += len(kept.pop(0).record.token_ids)
    return _keep_only(store, shelf, segment, kept) or Sizes()


def _readable(data: bytes | None) -> list[StoredRecord]:
    try:
        return decode_block(data) if data is not None else []
    except RecordError:
        return []


def _is_doomed(entry: Entry, doomed: Doomed) -> bool:
    try:
        return doomed(StoredRecord(entry.entry_id, decode_record(entry.data)))
    except RecordError:
        return True
