"""Phrases in an engine's draft memory, from its start until the journal has been read."""

from __future__ import annotations

import threading

from paceline.caches.phrases import PhraseSet
from paceline.caches.tiers import TieredMemory, Writer

PHRASES_KEY = 0x5048_5241_5345_5301
"""Key of all phrases in a log: a digest of a request's id would have to hit it by chance."""
PHRASES_SESSION = "\0phrases"
"""No session's id: the first session of a workload that has phrases is its second."""


class LoadedPhrases:
    """What each workload says most, as sequences of the shared logs; from any thread.

    Args:
        memory: where they go.
    """

    def __init__(self, memory: TieredMemory) -> None:
        self._memory = memory
        self._scopes: set[str] = set()
        self._is_over = False
        self._lock = threading.Lock()

    def add(self, found: PhraseSet) -> None:
        """Draft from some phrases, unless that is over. The likeliest become the newest."""
        writer = Writer(
            scope=found.shelf.scope,
            tenant=found.shelf.tenant,
            workload=found.workload,
            session=PHRASES_SESSION,
        )
        with self._lock:
            if self._is_over:
                return
            self._scopes.add(found.shelf.scope)
            for phrase in reversed(found.phrases):
                self._memory.append(writer, phrase, key=PHRASES_KEY, time=0.0, num_prompt=0)

    def clear(self) -> None:
        """Draft no more from those taken in so far. O(sequences of their scopes)."""
        with self._lock:
            for scope in self._scopes:
                self._memory.delete(scope, PHRASES_KEY)
            self._scopes.clear()

    def end(self) -> None:
        """Draft from them no more, and take in no others."""
        with self._lock:
            self._is_over = True
        self.clear()
