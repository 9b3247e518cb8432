"""Phrases in an engine's draft memory, from its start until the journal has been read."""

from __future__ import annotations

import threading

from paceline.caches import DraftIndex
from paceline.caches.phrases import PhraseSet

PHRASES_KEY = 0x5048_5241_5345_5301
"""Key of all phrases in a log: a digest of a request's id would have to hit it by chance."""


class LoadedPhrases:
    """What each workload says most, as sequences of the shared logs; from any thread.

    Args:
        index: where they go.
    """

    def __init__(self, index: DraftIndex) -> None:
        self._index = index
        self._logs: set[str] = set()
        self._is_over = False
        self._lock = threading.Lock()

    def add(self, log_name: str, found: PhraseSet) -> None:
        """Draft from some phrases, unless that is over. The likeliest become the newest."""
        with self._lock:
            if self._is_over:
                return
            self._logs.add(log_name)
            scope_id = self._index.scope(log_name)
            for phrase in reversed(found.phrases):
                self._index.append_shared(scope_id, phrase, key=PHRASES_KEY)

    def clear(self) -> None:
        """Draft no more from those taken in so far. O(sequences of their logs)."""
        with self._lock:
            for name in self._logs:
                self._index.delete_sequence(self._index.scope(name), PHRASES_KEY)
            self._logs.clear()

    def end(self) -> None:
        """Draft from them no more, and take in no others."""
        with self._lock:
            self._is_over = True
        self.clear()
