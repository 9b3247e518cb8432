"""Following the journal: warm-up from what is there, then every record as it comes."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, Final, cast

import redis

from paceline.caches.keys import RECORD_FIELD, JournalKeys
from paceline.caches.records import NewerSchemaError, SequenceRecord, decode_record
from paceline.errors import RecordError

BEGINNING: Final = "0-0"
PAGE_RECORDS: Final = 64
BLOCK_MILLISECONDS: Final = 100
REMEMBERED_REQUESTS: Final = 65_536

Entry = tuple[bytes, Mapping[bytes, bytes]]


def entry_order(entry_id: str) -> tuple[int, int]:
    """A stream entry's id as numbers that compare in the stream's order."""
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)


class JournalReader:
    """Where one engine stands in every stream of its model; used by one thread.

    Args:
        keys: the model's keys.
        origin: own id; own records are skipped, their tokens are in the memory already.
        on_record: takes each record, in stream order.
        on_failure: told of an exception that `on_record` raised; reading goes on.
        counts: counters to increase: received, warmed_up, skipped_own, skipped_duplicate,
            skipped_newer, skipped_malformed.
    """

    def __init__(
        self,
        keys: JournalKeys,
        *,
        origin: str,
        on_record: Callable[[SequenceRecord], None],
        on_failure: Callable[[Exception], None],
        counts: MutableMapping[str, int],
    ) -> None:
        self._keys = keys
        self._origin = origin
        self._on_record = on_record
        self._on_failure = on_failure
        self._counts = counts
        self._positions: dict[str, str] = {}
        self._seen: OrderedDict[str, None] = OrderedDict()

    @property
    def has_streams(self) -> bool:
        """Whether any scope of the model is known yet."""
        return bool(self._positions)

    def warm_up(self, client: redis.Redis, *, max_tokens: int) -> None:
        """Deliver the newest records of all scopes, at most `max_tokens` tokens, oldest first.

        Afterwards `read` goes on after the newest entry seen here, so that nothing that arrives
        meanwhile is lost.
        """
        newest_first: list[tuple[tuple[int, int], SequenceRecord]] = []
        budget = max_tokens
        for order, data in self._newest_entries(client):
            record = self._decode(data)
            if record is None:
                continue
            budget -= len(record.token_ids)
            if budget < 0:
                break
            newest_first.append((order, record))
        for _, record in reversed(newest_first):
            if self._deliver(record):
                self._counts["warmed_up"] += 1

    def read(self, client: redis.Redis) -> bool:
        """Deliver what has come since the last call, waiting up to 100 ms for it.

        True if anything had come.
        """
        self._discover(client)
        if not self._positions:
            return False
        answer = client.xread(
            cast("Any", self._positions), count=PAGE_RECORDS, block=BLOCK_MILLISECONDS
        )
        found = False
        for stream, entries in _pairs(answer):
            for entry_id, fields in entries:
                found = True
                self._positions[stream.decode()] = entry_id.decode()
                record = self._decode(fields.get(RECORD_FIELD, b""))
                if record is not None and self._deliver(record):
                    self._counts["received"] += 1
        return found

    def resynchronise(self, client: redis.Redis) -> None:
        """After a reconnection, read streams that lost data from their beginning.

        They may have been flushed or restored from older data; records delivered before are
        recognised by their request id.
        """
        for stream, position in self._positions.items():
            newest = cast("list[Entry]", client.xrevrange(stream, count=1))
            last = newest[0][0].decode() if newest else BEGINNING
            if entry_order(last) < entry_order(position):
                self._positions[stream] = BEGINNING

    def _discover(self, client: redis.Redis) -> None:
        for name in cast("set[bytes]", client.smembers(self._keys.scopes)):
            self._positions.setdefault(self._keys.journal(name.decode()), BEGINNING)

    def _newest_entries(self, client: redis.Redis) -> Iterator[tuple[tuple[int, int], bytes]]:
        """Entries of all scopes, newest first, a page a scope at a time.

        Notes each stream's newest id.
        """
        self._discover(client)
        streams = {s: _entries_backwards(client, s) for s in self._positions}
        heap: list[tuple[tuple[int, int], str, bytes]] = []
        for stream, entries in streams.items():
            first = next(entries, None)
            if first is not None:
                self._positions[stream] = first[0]
                heapq.heappush(heap, (_newest(first[0]), stream, first[1]))
        while heap:
            (milliseconds, sequence), stream, data = heap[0]
            following = next(streams[stream], None)
            if following is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, (_newest(following[0]), stream, following[1]))
            yield (-milliseconds, -sequence), data

    def _decode(self, data: bytes) -> SequenceRecord | None:
        try:
            return decode_record(data)
        except NewerSchemaError:
            self._counts["skipped_newer"] += 1
        except RecordError:
            self._counts["skipped_malformed"] += 1
        return None

    def _deliver(self, record: SequenceRecord) -> bool:
        if record.origin == self._origin:
            self._counts["skipped_own"] += 1
            return False
        if record.request_id in self._seen:
            self._counts["skipped_duplicate"] += 1
            return False
        self._seen[record.request_id] = None
        if len(self._seen) > REMEMBERED_REQUESTS:
            self._seen.popitem(last=False)
        try:
            self._on_record(record)
        except Exception as error:  # noqa: BLE001  counted by on_failure: one bad record must not stop the reading
            self._on_failure(error)
            return False
        return True


def _newest(entry_id: str) -> tuple[int, int]:
    milliseconds, sequence = entry_order(entry_id)
    return -milliseconds, -sequence


def _entries_backwards(client: redis.Redis, stream: str) -> Iterator[tuple[str, bytes]]:
    upper = "+"
    while True:
        page = cast("list[Entry]", client.xrevrange(stream, max=upper, count=PAGE_RECORDS))
        for entry_id, fields in page:
            yield entry_id.decode(), fields.get(RECORD_FIELD, b"")
        if len(page) < PAGE_RECORDS:
            return
        upper = f"({page[-1][0].decode()}"


def _pairs(answer: Any) -> Iterator[tuple[bytes, list[Entry]]]:
    """Streams and their entries from XREAD's answer, a map or pairs by protocol version."""
    if isinstance(answer, dict):
        for stream, chunks in answer.items():
            for entries in chunks:
                yield stream, entries
        return
    yield from answer or ()
