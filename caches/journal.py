"""The journal: what each engine served, shared with every engine of the same model through Redis.

Two threads and a bounded queue stand between an engine's step and the network: `Journal.publish`
only ever appends to the queue. The reader follows every scope of its model: first what is there,
newest first up to a budget, then as it comes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from redis.exceptions import RedisError

from paceline.caches.journal_client import Backoff, check_access, open_redis
from paceline.caches.journal_reader import JournalReader
from paceline.caches.keys import RECORD_FIELD, JournalKeys, redact_url
from paceline.caches.records import ModelFingerprint, SequenceRecord, encode_record
from paceline.errors import JournalError, RecordError

logger = logging.getLogger("paceline.journal")

BATCH_RECORDS: Final = 64
LOG_INTERVAL_SECONDS: Final = 60.0
IDLE_SECONDS: Final = 0.1
"""Pause between looks for a first scope.

With scopes, Redis itself holds the reader until something comes.
"""


class Journal:
    """Publishes this engine's finished sequences and delivers everybody else's.

    Args:
        url: Redis to use: redis://, rediss:// (TLS), unix://, with user and password where needed.
        fingerprint: model and tokenizer; journals of different fingerprints never meet.
        origin: this process's id in its records; a restarted process takes a new one and gets its
            records back.
        on_record: called from the reader's thread with every record of another origin, once each.
        max_stream_records: about how many records Redis keeps for each scope, the oldest go first.
        warm_up_tokens: most tokens read back at the start.
        queue_records: records held while Redis is away; beyond it the oldest are dropped and
            counted.
        clock: monotonic seconds.

    Raises:
        JournalError: `url` cannot be understood.
    """

    def __init__(
        self,
        url: str,
        fingerprint: ModelFingerprint,
        *,
        origin: str,
        on_record: Callable[[SequenceRecord], None],
        max_stream_records: int = 100_000,
        warm_up_tokens: int = 4_194_304,
        queue_records: int = 4096,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if min(max_stream_records, queue_records) < 1:
            raise JournalError(
                f"max_stream_records={max_stream_records}, queue_records={queue_records}; give at "
                "least 1"
            )
        self._url = url
        self._keys = JournalKeys(fingerprint)
        self._max_stream_records = max_stream_records
        self._warm_up_tokens = warm_up_tokens
        self._queue_records = queue_records
        self._clock = clock
        self._counts = dict.fromkeys(
            (
                *("published", "dropped", "unpublishable", "received", "warmed_up", "skipped_own"),
                *("skipped_duplicate", "skipped_newer", "skipped_malformed", "delivery_failures"),
                *("disconnections", "connected"),
            ),
            0,
        )
        self._reader = JournalReader(
            self._keys,
            origin=origin,
            on_record=on_record,
            on_failure=self._delivery_failed,
            counts=self._counts,
        )
        # One client a thread: the reader's blocks for up to 100 ms at a time.
        self._publishing_client = open_redis(url)
        self._reading_client = open_redis(url)
        self._queue: deque[SequenceRecord] = deque()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._last_logged = float("-inf")
        self.warmed_up = threading.Event()
        """Set once the memory that was in Redis at the start has been delivered."""
        self._threads = [
            threading.Thread(
                target=self._publish_forever, name="paceline-journal-publisher", daemon=True
            ),
            threading.Thread(
                target=self._read_forever, name="paceline-journal-reader", daemon=True
            ),
        ]

    def start(self) -> None:
        """Begin publishing and reading.

        A Redis that cannot be reached now is waited for in the background.

        Raises:
            JournalError: Redis refuses user, password or permissions.
        """
        check_access(self._publishing_client, self._url)
        for thread in self._threads:
            thread.start()

    def publish(self, record: SequenceRecord) -> None:
        """Queue one record for Redis.

        Never waits: when the queue is full the oldest record is dropped. O(1).
        """
        with self._changed:
            if len(self._queue) >= self._queue_records:
                self._queue.popleft()
                self._counts["dropped"] += 1
            self._queue.append(record)
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
        with self._changed:
            self._counts["dropped"] += len(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout)

    def stats(self) -> dict[str, int]:
        """Counters since the start.

        Published, dropped, received, warmed_up, skipped_*, disconnections; connected 0 or 1.
        """
        with self._changed:
            return {**self._counts, "queued": len(self._queue)}

    def _publish_forever(self) -> None:
        with self._publishing_client:
            self._publish_until_stopped()

    def _read_forever(self) -> None:
        with self._reading_client:
            self._read_until_stopped()

    def _publish_until_stopped(self) -> None:
        backoff = Backoff()
        while not self._stopping.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._stopping.is_set())
                batch = [self._queue[i] for i in range(min(len(self._queue), BATCH_RECORDS))]
            if not batch:
                continue
            try:
                self._publish(batch)
            except (RedisError, OSError) as error:
                self._disconnected(error)
                self._stopping.wait(backoff.next_seconds())
                continue
            backoff.reset()
            self._published(batch)

    def _publish(self, batch: list[SequenceRecord]) -> None:
        """Write the batch.

        A retry after a lost answer writes it twice, which readers recognise by request id.
        """
        pipeline = self._publishing_client.pipeline(transaction=False)
        for record in batch:
            try:
                encoded = encode_record(record)
            except RecordError as error:
                self._counts["unpublishable"] += 1
                logger.error("a finished request is not shared: %s", error)
                continue
            pipeline.sadd(self._keys.scopes, record.scope)
            pipeline.xadd(
                self._keys.journal(record.scope),
                {RECORD_FIELD: encoded},
                maxlen=self._max_stream_records,
                approximate=True,
            )
        pipeline.execute()

    def _published(self, batch: list[SequenceRecord]) -> None:
        """Take the batch off the queue, less what was dropped from its front meanwhile."""
        with self._changed:
            for record in batch:
                if self._queue and self._queue[0] is record:
                    self._queue.popleft()
            self._counts["published"] += len(batch)
            self._changed.notify_all()

    def _read_until_stopped(self) -> None:
        backoff = Backoff()
        while not self._stopping.is_set():
            try:
                self._reading_client.ping()
                self._reader.resynchronise(self._reading_client)
                self._counts["connected"] = 1
                backoff.reset()
                self._read_while_connected()
            except (RedisError, OSError) as error:
                self._counts["connected"] = 0
                self._disconnected(error)
                self._stopping.wait(backoff.next_seconds())

    def _read_while_connected(self) -> None:
        if not self.warmed_up.is_set():
            self._reader.warm_up(self._reading_client, max_tokens=self._warm_up_tokens)
            self.warmed_up.set()
        while not self._stopping.is_set():
            if not self._reader.read(self._reading_client) and not self._reader.has_streams:
                self._stopping.wait(IDLE_SECONDS)

    def _delivery_failed(self, error: Exception) -> None:
        self._counts["delivery_failures"] += 1
        self._log_rarely("a record of another engine could not be used", error)

    def _disconnected(self, error: Exception) -> None:
        if self._stopping.is_set():
            return
        self._counts["disconnections"] += 1
        self._log_rarely(
            f"{redact_url(self._url)} is away; drafting goes on from local memory", error
        )

    def _log_rarely(self, message: str, error: Exception) -> None:
        now = self._clock()
        if now - self._last_logged >= LOG_INTERVAL_SECONDS:
            self._last_logged = now
            logger.warning("%s: %s: %s", message, type(error).__name__, error)
