"""Phrases in Redis: adding counts, reading the likeliest, dropping a shelf's."""

from __future__ import annotations

from typing import Any, Final

from paceline.caches import journal_scripts as scripts
from paceline.caches.journal_store import MAX_SUBJECTS, JournalStore
from paceline.caches.keys import Shelf
from paceline.caches.phrases import (
    PhraseCounts,
    PhraseOwner,
    PhraseSet,
    PhraseSettings,
    decode_phrases,
)
from paceline.caches.tombstones import subjects

IDLE_SECONDS: Final = 30 * 86_400.0
"""Statistics that nobody adds to go after this time, or after the tenant's retention."""
BATCH_PHRASES: Final = 1000


class PhraseStore:
    """One model's phrases; use one object a thread.

    Args:
        store: the model's journal.
        settings: what is counted.
    """

    def __init__(self, store: JournalStore, settings: PhraseSettings) -> None:
        self._store = store
        self._settings = settings

    def add(self, owner: PhraseOwner, counted: PhraseCounts, *, retention_seconds: float) -> bool:
        """Add counts of one session; False if it has been forgotten meanwhile. O(phrases)."""
        keys = self._store.keys
        shelf = owner.shelf
        names = subjects(tenant=shelf.tenant, scope=shelf.scope, session=owner.session)
        weight = self._store.now() / self._settings.half_life_seconds
        ttl = int((retention_seconds or IDLE_SECONDS) * 1000)
        entry = self._entry(owner.workload)
        head = [entry, repr(weight), self._settings.max_phrases, ttl]
        head += [repr(counted.begun_at), *names, *[""] * (MAX_SUBJECTS - len(names))]
        at = [keys.phrases(shelf, entry), keys.workloads(shelf), keys.forgotten]
        items = list(counted.counts.items())
        for begin in range(0, len(items), BATCH_PHRASES):
            flat: list[Any] = [
                part for item in items[begin : begin + BATCH_PHRASES] for part in item
            ]
            if not self._store.run(scripts.COUNT, at, [*head, *flat]):
                return False
        self._drop_unused(shelf)
        return True

    def read(self, shelf: Shelf) -> list[PhraseSet]:
        """The phrases of a shelf's workloads, those used last first."""
        found: list[PhraseSet] = []
        for entry in entries(self._store, shelf):
            half_life, _, workload = entry.partition(":")
            if half_life != self._entry("").removesuffix(":"):
                continue
            key = self._store.keys.phrases(shelf, entry)
            stored = self._store.client.zrevrange(key, 0, self._settings.max_phrases - 1)
            if stored:
                found.append(PhraseSet(shelf, workload, decode_phrases(stored)))
        return found

    def _entry(self, workload: str) -> str:
        """A workload in the index; counts of another half-life are other counts."""
        return f"{max(round(self._settings.half_life_seconds), 1)}:{workload}"

    def _drop_unused(self, shelf: Shelf) -> None:
        for entry in entries(self._store, shelf)[self._settings.max_workloads :]:
            _drop(self._store, shelf, entry)


def drop_phrases(store: JournalStore, shelf: Shelf) -> None:
    """Remove all phrases of a shelf."""
    for entry in entries(store, shelf):
        _drop(store, shelf, entry)


def entries(store: JournalStore, shelf: Shelf) -> list[str]:
    """``HALFLIFE:WORKLOAD`` of every set of phrases of a shelf, used last first."""
    answer = store.client.zrevrange(store.keys.workloads(shelf), 0, -1)
    return [name.decode("utf-8", "replace") for name in answer]


def _drop(store: JournalStore, shelf: Shelf, entry: str) -> None:
    store.client.delete(store.keys.phrases(shelf, entry))
    store.client.zrem(store.keys.workloads(shelf), entry)
