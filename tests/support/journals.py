"""Engines as the journal sees them, and what a Redis holds of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from paceline.caches import ModelFingerprint, SequenceRecord
from paceline.caches.journal import COUNTERS, Journal
from paceline.caches.journal_client import RedisAddress
from paceline.caches.journal_keeper import JournalKeeper, Quota, StoreLimits, no_quota
from paceline.caches.journal_store import BEGINNING, Appended, Appending, JournalStore, Sizes
from paceline.caches.keys import JournalKeys, Shelf, namespace_of
from paceline.caches.records import encode_record
from paceline.caches.shelf_reading import RecordDecoder, records_after
from paceline.caches.tombstones import Tombstone

MODEL = ModelFingerprint(model="m", tokenizer="t")
SHELF = Shelf("tenant:a", "a")


def record(
    number: int,
    *,
    scope: str = "tenant:a",
    tenant: str = "a",
    session: str = "",
    origin: str = "A",
    num_tokens: int = 10,
    finished_at: float | None = None,
) -> SequenceRecord:
    """A record whose tokens begin with its number."""
    return SequenceRecord(
        request_id=f"request-{number}",
        scope=scope,
        tenant=tenant,
        workload="",
        session=session,
        origin=origin,
        token_ids=np.arange(number, number + num_tokens, dtype=np.int32),
        num_prompt=4,
        finished_at=time.time() if finished_at is None else finished_at,
    )


class Engine:
    """A journal and what it delivered."""

    def __init__(
        self, url: str, origin: str, model: ModelFingerprint = MODEL, **options: Any
    ) -> None:
        self.got: list[SequenceRecord] = []
        self.forgotten: list[Tombstone] = []
        self.journal = Journal(
            url,
            model,
            origin=origin,
            on_record=self.got.append,
            on_forget=self.forgotten.append,
            **options,
        )

    def ids(self) -> list[str]:
        return [r.request_id for r in self.got]


def open_store(url: str, model: ModelFingerprint = MODEL) -> JournalStore:
    """The journal's store, for looking at it from outside; closed with its client."""
    return JournalStore(RedisAddress(url).connect(), JournalKeys(namespace_of(model)))


def append(
    store: JournalStore, *records: SequenceRecord, retention_seconds: float | None = 0.0
) -> list[Appended]:
    """Write records as a publisher does."""
    return [
        store.append([Appending(r, encode_record(r), retention_seconds=retention_seconds)])[0]
        for r in records
    ]


def keeper(
    holder: str = "K", quota_of: Callable[[str], Quota] = no_quota, **limits: Any
) -> tuple[JournalKeeper, Counter[str]]:
    """A keeper that seals at once, and its counters."""
    counts = Counter(dict.fromkeys(COUNTERS, 0))
    made = JournalKeeper(
        holder=holder,
        limits=StoreLimits(**{"seal_after_seconds": 0.0, **limits}),
        quota_of=quota_of,
        counts=counts,
    )
    return made, counts


def stored_ids(store: JournalStore, shelf: Shelf = SHELF) -> list[str]:
    """Request ids of everything on a shelf, oldest first."""
    found = records_after(store, shelf, BEGINNING, RecordDecoder(Counter()))
    return [item.record.request_id for item in found]


def counted(store: JournalStore, shelf: Shelf) -> Sizes:
    """What a shelf really holds, counted entry by entry and block by block."""
    sizes = Sizes()
    position = BEGINNING
    while page := store.read_tails({shelf: position}).get(shelf, []):
        position = page[-1].entry_id
        for entry in page:
            sizes = _plus(sizes, Sizes(1, entry.num_tokens, len(entry.data)))
    for segment in store.segments(shelf):
        block = store.block(shelf, segment)
        assert block is not None
        stored = RecordDecoder(Counter(COUNTERS)).block(block, shelf)
        num_tokens = sum(len(item.record.token_ids) for item in stored)
        assert (segment.num_records, segment.num_tokens) == (len(stored), num_tokens)
        assert segment.num_bytes == len(block)
        sizes = _plus(sizes, Sizes(len(stored), num_tokens, len(block)))
    return sizes


def check_accounts(store: JournalStore, tenant: str) -> Sizes:
    """Fail unless the accounts of a tenant and of each of its shelves are what is there."""
    total = Sizes()
    for shelf in store.shelves_of(tenant):
        whole = counted(store, shelf)
        assert store.shelf_sizes(shelf).whole == whole
        total = _plus(total, whole)
    assert store.tenant_sizes(tenant) == total
    return total


def _plus(a: Sizes, b: Sizes) -> Sizes:
    return Sizes(
        a.num_records + b.num_records, a.num_tokens + b.num_tokens, a.num_bytes + b.num_bytes
    )
