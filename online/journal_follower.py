"""Feeding a replay from the journal: a thread that follows it, forgets with it, and saves."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from typing import Final

from paceline.caches.journal_client import UNREACHABLE, Backoff, RedisAddress
from paceline.caches.journal_reader import JournalReader, RecentRequests
from paceline.caches.journal_store import JournalStore
from paceline.caches.keys import JournalKeys, Shelf
from paceline.caches.records import SequenceRecord
from paceline.caches.tombstones import Tombstone
from paceline.online.replay import Replay

logger = logging.getLogger("paceline.replay")

EXPIRE_SECONDS: Final = 60.0
SAVE_SECONDS: Final = 300.0
LOG_INTERVAL_SECONDS: Final = 60.0
COUNTERS: Final = (
    *("received", "warmed_up", "forgotten", "skipped_own", "skipped_duplicate"),
    *("skipped_forgotten", "skipped_newer", "skipped_malformed"),
    *("delivery_failures", "save_failures", "disconnections", "connected"),
)


class JournalFollower:
    """Gives a replay what its model's journal holds, from where the replay stood, and what comes.

    It reads only: nothing is written to Redis. While Redis is away the replay stays as it is.

    Args:
        url: Redis to use, see `RedisAddress`.
        replay: takes the records; its namespace says whose.
        on_forget: told of each tombstone, once nothing of it is left in the replay.
        save_seconds: longest time between two savings while something changes.
        clock: monotonic seconds.

    Attributes:
        caught_up: set once all that was in Redis at the start has been taken in.

    Raises:
        JournalError: `url` cannot be understood.
    """

    def __init__(
        self,
        url: str,
        replay: Replay,
        *,
        on_forget: Callable[[], object] = lambda: None,
        save_seconds: float = SAVE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = RedisAddress(url)
        self._replay = replay
        self._keys = JournalKeys(replay.namespace)
        self._on_forget = on_forget
        self._save_seconds = save_seconds
        self._clock = clock
        self._counts = Counter(dict.fromkeys(COUNTERS, 0))
        self._stopping = threading.Event()
        self.caught_up = threading.Event()
        self._last_logged = float("-inf")
        self._save_at = clock() + save_seconds
        self._expire_at = clock()
        self._reader = JournalReader(
            origin=f"learner-{uuid.uuid4().hex}",
            known=RecentRequests(),
            on_record=self._add,
            on_again=None,
            on_forget=self._forget,
            on_phrases=lambda _phrases: None,
            on_failure=self._delivery_failed,
            counts=self._counts,
            clock=clock,
        )
        self._reader.resume(replay.positions)
        self._thread = threading.Thread(
            target=self._follow_until_stopped, name="paceline-replay", daemon=True
        )

    def start(self) -> None:
        """Begin following; a Redis that cannot be reached now is waited for.

        Raises:
            JournalError: Redis refuses user, password or permissions.
        """
        self._address.check_access()
        self._thread.start()

    def close(self, timeout: float = 5.0) -> None:
        """Stop and save."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout)
        self._save()

    def stats(self) -> dict[str, int]:
        """Counters of the reading since the start; connected is 0 or 1."""
        return dict(self._counts)

    def _follow_until_stopped(self) -> None:
        backoff = Backoff()
        while not self._stopping.is_set():
            try:
                with closing(self._address.connect()) as client:
                    self._follow(JournalStore(client, self._keys), backoff)
            except UNREACHABLE as error:
                self._disconnected(error)
                self._stopping.wait(backoff.next_seconds())

    def _follow(self, store: JournalStore, backoff: Backoff) -> None:
        try:
            self._reader.synchronise(store)
            self._reader.catch_up(store)
            self._replay.note(self._reader.positions)
            self.caught_up.set()
            self._counts["connected"] = 1
            backoff.reset()
            while not self._stopping.is_set():
                if self._reader.read(store):
                    self._replay.note(self._reader.positions)
                self._keep_up(store)
        finally:
            self._counts["connected"] = 0

    def _keep_up(self, store: JournalStore) -> None:
        """What is done now and then: letting go of what is too old, and saving."""
        now = self._clock()
        if now >= self._expire_at:
            self._expire_at = now + EXPIRE_SECONDS
            self._replay.expire(
                {tenant: store.retention_seconds(tenant) for tenant in self._replay.tenants()}
            )
        if now >= self._save_at:
            self._save()
            self._save_at = self._clock() + self._save_seconds

    def _add(self, record: SequenceRecord) -> None:
        shelf = Shelf(record.scope, record.tenant)
        self._replay.add(record, self._reader.position(shelf))

    def _forget(self, tombstone: Tombstone) -> None:
        self._replay.forget(tombstone)
        self._on_forget()
        self._save_at = self._clock()  # what was forgotten does not stay on disk either

    def _save(self) -> None:
        try:
            self._replay.save()
        except OSError as error:
            self._counts["save_failures"] += 1
            self._log_rarely("what is to be learned from cannot be saved", error)

    def _delivery_failed(self, error: Exception) -> None:
        self._counts["delivery_failures"] += 1
        self._log_rarely("a record cannot be learned from", error)

    def _disconnected(self, error: Exception) -> None:
        if self._stopping.is_set():
            return
        self._counts["disconnections"] += 1
        self._log_rarely(f"{self._address.shown} is away; nothing new is learned from", error)

    def _log_rarely(self, message: str, error: Exception) -> None:
        now = self._clock()
        if now - self._last_logged >= LOG_INTERVAL_SECONDS:
            self._last_logged = now
            logger.warning("%s: %s: %s", message, type(error).__name__, error)
