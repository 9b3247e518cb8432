"""The journal: what each engine served, shared with every engine of the same model through Redis.

Three threads and a bounded queue stand between an engine's step and the network: `Journal.publish`
only ever appends to the queue. One thread publishes, one follows every shelf of its model (first
what is there, newest first up to a budget, then as it comes), one does the upkeep. Each has a
connection of its own, and no lock is held while one waits for Redis.

A producer that holds no draft memory (the proxy) follows nothing: it publishes, and does the upkeep
of what it publishes, since there may be no engine yet that does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from typing import Final

from paceline.caches.journal_client import UNREACHABLE, Backoff, RedisAddress
from paceline.caches.journal_keeper import (
    SWEEP_SECONDS,
    JournalKeeper,
    QuotaOf,
    StoreLimits,
    no_quota,
)
from paceline.caches.journal_lag import LagCounts
from paceline.caches.journal_reader import JournalReader, RecentRequests
from paceline.caches.journal_store import KNOWN, RECORDED, REFUSED, Appending, JournalStore
from paceline.caches.keys import JournalKeys, namespace_of
from paceline.caches.phrase_store import PhraseStore
from paceline.caches.phrases import PhraseSet, PhraseSettings
from paceline.caches.records import ModelFingerprint, SequenceRecord, encode_record
from paceline.caches.tombstones import Tombstone
from paceline.errors import JournalError, RecordError

logger = logging.getLogger("paceline.journal")

BATCH_RECORDS: Final = 64
BATCH_BYTES: Final = 4_194_304
PUBLISH_PAUSE_SECONDS: Final = 0.06
READ_PAUSE_SECONDS: Final = 0.08
"""Pause after each batch and after each look that found something.

What comes meanwhile goes in one round trip: a thread that wakes for each record by itself pays
five times the CPU for it. Together they bound the lag that is of our making.
"""
LOG_INTERVAL_SECONDS: Final = 60.0
KEEPER_SECONDS: Final = 2.0
"""Time between two looks at the tails that `publish` found full: they may have been too young."""
COUNT_SECONDS: Final = 8.0
"""Longest time between two writings of what has been counted."""
COUNTERS: Final = (
    *("published", "dropped", "unpublishable", "refused_forgotten", "refused_duplicate"),
    *("received", "warmed_up", "forgotten", "skipped_own", "skipped_duplicate"),
    *("skipped_forgotten", "skipped_newer", "skipped_malformed", "delivery_failures"),
    *("sealed", "evicted_tokens", "phrases", "migrated", "sweeps", "disconnections", "connected"),
)


class Journal:
    """Publishes this engine's finished sequences and delivers everybody else's.

    Args:
        url: Redis to use: redis://, rediss:// (TLS), unix://, with user and password where needed;
            a node of a Redis Cluster is recognised, or named by redis+cluster://.
        fingerprint: model and tokenizer; journals of different fingerprints never meet.
        origin: this process's id in its records; a restarted process takes a new one and gets its
            records back.
        on_record: called from the reader's thread with every record of another origin, once each.
        follows: False publishes only: nothing is read, and no other callback is called.
        on_again: called with records delivered before, the newest of a warm-up, when everything
            older has been delivered behind them: a memory in which the oldest goes first adds them
            anew. None delivers strictly oldest first, and the newest last.
        on_forget: called from the reader's thread with every tombstone, the standing ones before
            any record.
        on_phrases: called at the start, before any record, with what each workload says most.
        on_warmed_up: called when the records that were in Redis at the start are delivered: those
            phrases are among them, or too old for the budget.
        limits: how much Redis keeps.
        phrases: which phrases are counted.
        quota_of: quota of a tenant; none by default.
        warm_up_tokens: most tokens read back at the start.
        head_tokens: how many of them, the newest, are delivered first.
        queue_records: records held while Redis is away; beyond it the oldest are dropped and
            counted.
        queue_tokens: tokens that they may hold together (4 bytes each), likewise; a longer record
            is held alone.
        clock: monotonic seconds.

    Raises:
        JournalError: `url` cannot be understood, or a bound is less than 1.
    """

    def __init__(
        self,
        url: str,
        fingerprint: ModelFingerprint,
        *,
        origin: str,
        on_record: Callable[[SequenceRecord], object] | None = None,
        follows: bool = True,
        on_again: Callable[[SequenceRecord], object] | None = None,
        on_forget: Callable[[Tombstone], object] | None = None,
        on_phrases: Callable[[PhraseSet], object] | None = None,
        on_warmed_up: Callable[[], object] | None = None,
        limits: StoreLimits | None = None,
        phrases: PhraseSettings | None = None,
        quota_of: QuotaOf = no_quota,
        warm_up_tokens: int = 4_194_304,
        head_tokens: int = 262_144,
        queue_records: int = 4096,
        queue_tokens: int = 67_108_864,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for name, bound in (("queue_records", queue_records), ("queue_tokens", queue_tokens)):
            if bound < 1:
                raise JournalError(f"{name}={bound}; give at least 1")
        self._address = RedisAddress(url)
        self._fingerprint = fingerprint
        self._keys = JournalKeys(namespace_of(fingerprint))
        self._quota_of = quota_of
        self._warm_up_tokens = warm_up_tokens
        self._head_tokens = head_tokens
        self._queue_records = queue_records
        self._queue_tokens = queue_tokens
        self._queued_tokens = 0
        self._clock = clock
        self._counts = dict.fromkeys(COUNTERS, 0)
        self._follows = follows
        self._known = RecentRequests()
        self._phrases = phrases or PhraseSettings()
        self._on_warmed_up = on_warmed_up
        self._reader = JournalReader(
            origin=origin,
            known=self._known,
            on_record=on_record or _ignore,
            on_again=on_again,
            on_forget=on_forget or _ignore,
            on_phrases=on_phrases or _ignore,
            on_failure=self._delivery_failed,
            counts=self._counts,
            clock=clock,
        )
        self._keeper = JournalKeeper(
            holder=origin,
            limits=limits or StoreLimits(),
            quota_of=quota_of,
            counts=self._counts,
            phrases=self._phrases,
            clock=clock,
        )
        self._upkeep_due = threading.Event()
        self._queue: deque[SequenceRecord] = deque()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._last_logged = float("-inf")
        self.warmed_up = threading.Event()
        """Set once the memory that was in Redis at the start has been delivered."""
        self._threads = [
            threading.Thread(
                target=self._forever, args=(work,), name=f"paceline-journal-{name}", daemon=True
            )
            for name, work in (
                ("publisher", self._publish_until_stopped),
                *((("reader", self._read_until_stopped),) if follows else ()),
                ("keeper", self._keep_until_stopped),
            )
        ]

    def start(self) -> None:
        """Begin publishing and reading.

        A Redis that cannot be reached now is waited for in the background.

        Raises:
            JournalError: Redis refuses user, password or permissions.
        """
        self._address.check_access()
        for thread in self._threads:
            thread.start()

    def publish(self, record: SequenceRecord) -> None:
        """Queue one record for Redis.

        Never waits: while the queue is full the oldest record is dropped. O(1) amortised.
        """
        self._known.add(record)
        with self._changed:
            self._queue.append(record)
            self._queued_tokens += len(record.token_ids)
            while len(self._queue) > 1 and (
                len(self._queue) > self._queue_records or self._queued_tokens > self._queue_tokens
            ):
                self._take_oldest()
                self._counts["dropped"] += 1
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Wait until all that was queued is in Redis.

        False if `timeout` seconds were not enough.
        """
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue, timeout)

    def close(self, timeout: float = 2.0) -> None:
        """Publish what is queued if `timeout` seconds suffice, then stop.

        What is left is counted as dropped.
        """
        self.flush(timeout)
        self._stopping.set()
        self._upkeep_due.set()
        with self._changed:
            self._counts["dropped"] += len(self._queue)
            self._queue.clear()
            self._queued_tokens = 0
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout)

    def stats(self) -> dict[str, int]:
        """Counters since the start.

        Published, dropped, refused_*, received, warmed_up, forgotten, skipped_*, sealed,
        evicted_tokens, migrated, disconnections; connected 0 or 1; queued.
        """
        with self._changed:
            return {**self._counts, "queued": len(self._queue)}

    @property
    def is_connected(self) -> bool:
        """Whether what was recorded before is read, and records can come and go. O(1)."""
        return bool(self._counts["connected"])

    def lag(self) -> LagCounts:
        """How late the records of others came, from their finish to their delivery here."""
        return self._reader.lag.read()

    def _forever(self, work: Callable[[JournalStore, Backoff], None]) -> None:
        """Do one thread's work over connection after connection."""
        backoff = Backoff()
        while not self._stopping.is_set():
            try:
                with closing(self._address.connect()) as client:
                    work(JournalStore(client, self._keys), backoff)
            except UNREACHABLE as error:
                self._disconnected(error)
                self._stopping.wait(backoff.next_seconds())

    def _publish_until_stopped(self, store: JournalStore, backoff: Backoff) -> None:
        store.register(self._fingerprint)
        if self._follows:
            self._publish_over(store, backoff)
            return
        self._counts["connected"] = 1
        try:
            self._publish_over(store, backoff)
        finally:
            self._counts["connected"] = 0

    def _publish_over(self, store: JournalStore, backoff: Backoff) -> None:
        while not self._stopping.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._stopping.is_set())
                batch = [self._queue[i] for i in range(min(len(self._queue), BATCH_RECORDS))]
            if batch:
                self._published(batch[: self._append(store, batch)])
                backoff.reset()
                if len(batch) < BATCH_RECORDS:
                    self._stopping.wait(PUBLISH_PAUSE_SECONDS)

    def _append(self, store: JournalStore, batch: list[SequenceRecord]) -> int:
        """Write as much of the batch as goes in one call; returns how many records that is.

        A retry after a lost answer is recognised by the request's id.
        """
        appending: list[Appending] = []
        num_taken, num_bytes = 0, 0
        for record in batch:
            num_taken += 1
            try:
                encoded = encode_record(record)
            except RecordError as error:
                self._counts["unpublishable"] += 1
                logger.error("a finished request is not shared: %s", error)
                continue
            retention = self._quota_of(record.tenant).retention_seconds or 0.0
            appending.append(Appending(record, encoded, retention_seconds=retention))
            num_bytes += len(encoded)
            if num_bytes >= BATCH_BYTES:
                break
        for item, appended in zip(appending, store.append(appending), strict=True):
            self._counts["published"] += appended.status == RECORDED
            self._counts["refused_forgotten"] += appended.status == REFUSED
            self._counts["refused_duplicate"] += appended.status == KNOWN
            if appended.status == RECORDED:
                self._keeper.count(item.record)
            if self._keeper.note(item.shelf, appended):
                self._upkeep_due.set()
        return num_taken

    def _published(self, batch: list[SequenceRecord]) -> None:
        """Take the batch off the queue.

        What was dropped from the queue's front meanwhile has been written after all.
        """
        with self._changed:
            for record in batch:
                if self._queue and self._queue[0] is record:
                    self._take_oldest()
                else:
                    self._counts["dropped"] -= 1
            self._changed.notify_all()

    def _take_oldest(self) -> None:
        """Remove the queue's first record; with `_changed` held."""
        self._queued_tokens -= len(self._queue.popleft().token_ids)

    def _read_until_stopped(self, store: JournalStore, backoff: Backoff) -> None:
        try:
            self._reader.synchronise(store)
            if self.warmed_up.is_set():
                self._reader.catch_up(store)
            else:
                self._reader.read_phrases(store, PhraseStore(store, self._phrases))
                self._reader.warm_up(
                    store, max_tokens=self._warm_up_tokens, head_tokens=self._head_tokens
                )
                self.warmed_up.set()
                if self._on_warmed_up is not None:
                    self._on_warmed_up()
            self._counts["connected"] = 1
            backoff.reset()
            while not self._stopping.is_set():
                if self._reader.read(store):
                    self._stopping.wait(READ_PAUSE_SECONDS)
        finally:
            self._counts["connected"] = 0

    def _keep_until_stopped(self, store: JournalStore, backoff: Backoff) -> None:
        next_sweep = self._clock()
        while not self._stopping.is_set():
            if self._clock() >= next_sweep:
                self._keeper.sweep(store)
                next_sweep = self._clock() + SWEEP_SECONDS
            self._keeper.work(store)
            backoff.reset()
            self._stopping.wait(KEEPER_SECONDS)
            self._upkeep_due.wait(min(max(next_sweep - self._clock(), 0), COUNT_SECONDS))
            self._upkeep_due.clear()

    def _delivery_failed(self, error: Exception) -> None:
        self._counts["delivery_failures"] += 1
        self._log_rarely("a record of another engine could not be used", error)

    def _disconnected(self, error: Exception) -> None:
        if self._stopping.is_set():
            return
        self._counts["disconnections"] += 1
        self._log_rarely(
            f"{self._address.shown} is away; drafting goes on from local memory", error
        )

    def _log_rarely(self, message: str, error: Exception) -> None:
        now = self._clock()
        if now - self._last_logged >= LOG_INTERVAL_SECONDS:
            self._last_logged = now
            logger.warning("%s: %s: %s", message, type(error).__name__, error)


def _ignore(_delivered: object) -> None:
    """Nobody wants it."""
