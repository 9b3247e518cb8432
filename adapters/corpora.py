"""Corpora on their way from the store into an engine's draft memory, off the engine's step."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from paceline.adapters.failures import FailureLog
from paceline.caches import DraftIndex, ModelFingerprint
from paceline.caches.corpus import CorpusStore, StoreVersion

logger = logging.getLogger("paceline.corpora")

LOOK_SECONDS: Final = 2.0
"""How often the store is looked at: a few `stat` calls for each scope with requests."""
RETRY_SECONDS: Final = 60.0
"""How soon a corpus is tried again that could not be read, unless it is replaced before."""
CLOSE_SECONDS: Final = 2.0
LEAST_CAPACITY: Final = 2
"""Of the log of a corpus scope, which stays empty."""


@dataclass(slots=True)
class _Known:
    """What is attached for one owner.

    Attributes:
        scope_id: where; -1 before anything was.
        version: of the owner's part of the store.
        retry_at: when to look again whatever the version, None if all could be read.
    """

    scope_id: int = -1
    version: StoreVersion | None = None
    retry_at: float | None = None


class CorpusFeed:
    """Keeps the corpora of an index those of a store, on a thread of its own.

    Each owner of corpora (a tenant or a group, `RequestInfo.owner`) has a scope in the index that
    holds its segments and nothing else; its requests read that scope beside their own. A corpus
    that is added, replaced or removed is noticed within `look_seconds` and the time that opening
    it takes. Whatever fails is logged and costs drafts, nothing else.

    Args:
        index: draft memory.
        store: corpora.
        fingerprint: of the served model: only corpora of its tokenizer are opened.
        look_seconds: see above, above 0.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        index: DraftIndex,
        store: CorpusStore,
        fingerprint: ModelFingerprint,
        *,
        look_seconds: float = LOOK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.failures = FailureLog(logger, "reading corpora")
        self._index = index
        self._store = store
        self._fingerprint = fingerprint
        self._look_seconds = look_seconds
        self._clock = clock
        self._wanted: dict[str, int] = {}
        self._known: dict[str, _Known] = {}
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="paceline-corpora", daemon=True)

    def start(self) -> None:
        """Start looking."""
        self._thread.start()

    def close(self) -> None:
        """Stop; what is attached stays."""
        self._is_closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)

    def scope_id(self, owner: str) -> int:
        """Id of the scope in the index that has the owner's corpora, or will have them.

        Never waits for a file: corpora are opened in the background the first time an owner is
        named. O(1).
        """
        scope_id = self._index.scope(f"corpus:{owner}", capacity=LEAST_CAPACITY)
        with self._lock:
            if self._wanted.get(owner) == scope_id:
                return scope_id
            self._wanted[owner] = scope_id
        self._wake.set()
        return scope_id

    def look(self) -> None:
        """Attach what has changed in the store since the last look. O(bytes of what changed)."""
        with self._lock:
            wanted = dict(self._wanted)
        for owner, scope_id in wanted.items():
            try:
                self._look_for(owner, scope_id)
            except Exception as error:  # noqa: BLE001  counted: speculation fails open
                self.failures.record(error)

    def _look_for(self, owner: str, scope_id: int) -> None:
        known = self._known.setdefault(owner, _Known())
        version = self._store.version(owner)
        is_due = known.retry_at is not None and self._clock() >= known.retry_at
        if (known.scope_id, known.version) == (scope_id, version) and not is_due:
            return
        opened = self._store.open(owner, self._fingerprint)
        self._index.attach_corpora(scope_id, opened.segments)
        known.scope_id, known.version = scope_id, version
        known.retry_at = self._clock() + RETRY_SECONDS if opened.num_left_out else None
        if opened.segments:
            num_tokens = sum(segment.num_tokens for segment in opened.segments)
            logger.info("%s drafts from corpora of %d tokens", owner, num_tokens)

    def _run(self) -> None:
        while not self._is_closing:
            self._wake.clear()
            self.look()
            self._wake.wait(self._look_seconds)
