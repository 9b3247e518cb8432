"""Moving what an older Paceline wrote (layout 1: one stream a scope) into today's layout.

Each entry is moved by one script that removes it there and appends it here, so that it is moved
once however many engines migrate, and one that dies loses nothing. An engine of the older Paceline
may go on beside: what it writes is moved at the next sweep; it does not see what newer ones write.
"""

from __future__ import annotations

from typing import Final

from paceline.caches.journal_store import RECORDED, Appending, JournalStore
from paceline.caches.keys import RECORD_FIELD, LegacyKeys
from paceline.caches.records import NewerSchemaError, decode_record
from paceline.errors import RecordError

PAGE_ENTRIES: Final = 64


def migrate(store: JournalStore) -> int:
    """Move every readable record of layout 1 here; returns how many this call moved.

    Entries of a newer record schema stay where they are; damaged ones are removed.
    """
    legacy = LegacyKeys(store.keys.namespace)
    moved = 0
    for name in store.client.smembers(legacy.scopes):
        scope = name.decode()
        stream = legacy.journal(scope)
        moved += _move_stream(store, stream, scope)
        store.retire(stream, legacy.scopes, scope)
    return moved


def _move_stream(store: JournalStore, stream: str, scope: str) -> int:
    moved, lower = 0, "-"
    while True:
        page = store.client.xrange(stream, min=lower, count=PAGE_ENTRIES)
        batch: list[Appending] = []
        for entry_id, fields in page:
            data = fields.get(RECORD_FIELD, b"")
            try:
                record = decode_record(data)
            except NewerSchemaError:
                continue
            except RecordError:
                store.client.xdel(stream, entry_id)
                continue
            if record.scope != scope:
                store.client.xdel(stream, entry_id)
                continue
            batch.append(
                Appending(
                    record,
                    data,
                    retention_seconds=None,
                    source=(stream, entry_id.decode()),
                )
            )
        if batch:
            moved += sum(a.status == RECORDED for a in store.append(batch))
        if len(page) < PAGE_ENTRIES:
            return moved
        lower = f"({page[-1][0].decode()}"
