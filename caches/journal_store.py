"""What the journal does in Redis, one method an operation; `keys` says where, the scripts how."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha1
from math import ceil
from typing import Any, Final, Self

from redis.exceptions import NoScriptError

from paceline.caches import journal_scripts as scripts
from paceline.caches.journal_client import Client
from paceline.caches.keys import (
    MODELS_KEY,
    ORIGIN_FIELD,
    RECORD_FIELD,
    SHELF_FIELD,
    TOKENS_FIELD,
    JournalKeys,
    Shelf,
    namespace_of,
)
from paceline.caches.records import ModelFingerprint, SequenceRecord
from paceline.caches.tombstones import Tombstone, subjects
from paceline.errors import RecordError

BEGINNING: Final = (0, 0)
BELL_ENTRIES: Final = 4096
CONTROL_ENTRIES: Final = 4096
PAGE_ENTRIES: Final = 256
MAX_SUBJECTS: Final = 4

EntryId = tuple[int, int]
"""Id of a stream entry: milliseconds of Redis's clock, and a sequence number."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a shelf's tail.

    Attributes:
        entry_id: where it stands.
        data: encoded record.
        num_tokens: tokens of the record.
        origin: who wrote it.
    """

    entry_id: EntryId
    data: bytes
    num_tokens: int
    origin: str


@dataclass(frozen=True, slots=True)
class Ring:
    """One entry of the bell: a shelf got something new.

    Attributes:
        shelf: which.
        origin: who wrote all of it, "" for several.
        after: the tail's last entry before.
        last: the last of the new ones.
        num_records: how many they are.
    """

    shelf: Shelf
    origin: str
    after: EntryId
    last: EntryId
    num_records: int


@dataclass(frozen=True, slots=True)
class SegmentInfo:
    """What the index says of one segment.

    Attributes:
        last_id: where its last record stood in the tail.
        first_milliseconds: when its first record was written.
        num_records: records in it.
        num_tokens: their tokens.
        num_bytes: size of the block.
    """

    last_id: EntryId
    first_milliseconds: int
    num_records: int
    num_tokens: int
    num_bytes: int

    @property
    def member(self) -> str:
        """Its entry in the index."""
        return (
            f"{id_text(self.last_id)}:{self.first_milliseconds}:{self.num_records}:"
            f"{self.num_tokens}:{self.num_bytes}"
        )

    @classmethod
    def parse(cls, member: bytes) -> Self:
        """The segment of an index entry.

        Raises:
            RecordError: it is none.
        """
        try:
            last_id, *numbers = member.decode().split(":")
            first, records, tokens, size = map(int, numbers)
            return cls(parse_id(last_id), first, records, tokens, size)
        except ValueError as error:
            raise RecordError(f"{member!r} describes no segment") from error


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a shelf or a tenant holds, as accounted for in Redis."""

    num_records: int = 0
    num_tokens: int = 0
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ShelfSizes:
    """Sizes of a whole shelf and of its tail, and the epoch they were read in."""

    whole: Sizes
    tail: Sizes
    epoch: str


@dataclass(frozen=True, slots=True)
class Appending:
    """One record to append.

    Attributes:
        record: the record.
        encoded: the same as bytes.
        retention_seconds: how long the tenant's records are kept from now on, 0 for ever, None as
            long as before; also how long the tail outlives its newest record.
        remember_seconds: how long the request is known as recorded, 0 not at all.
        source: stream and entry that it is moved from, all or nothing; None for a new record.
    """

    record: SequenceRecord
    encoded: bytes
    retention_seconds: float | None = 0.0
    remember_seconds: int = 600
    source: tuple[str, str] | None = None

    @property
    def shelf(self) -> Shelf:
        """Where it goes."""
        return Shelf(self.record.scope, self.record.tenant)


RECORDED, KNOWN, REFUSED, MOVED = 1, 0, -1, -2


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of one record: a status, and the sizes after it where it was recorded."""

    status: int
    tail: Sizes = Sizes()
    shelf: Sizes = Sizes()
    tenant: Sizes = Sizes()


class JournalStore:
    """One model's journal in Redis; use one object a thread.

    Every method may raise what `journal_client.UNREACHABLE` lists.

    Args:
        client: a connected client.
        keys: the model's keys.
    """

    def __init__(self, client: Client, keys: JournalKeys) -> None:
        self.client = client
        self.keys = keys

    def run(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """The answer of one script."""
        sha = sha1(script.encode(), usedforsecurity=False).hexdigest()
        try:
            return self.client.evalsha(sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return self.client.eval(script, len(keys), *keys, *arguments)

    def register(self, fingerprint: ModelFingerprint) -> None:
        """Say whose journal this is, for `paceline memory`."""
        described = {"model": fingerprint.model, "tokenizer": fingerprint.tokenizer}
        self.client.hset(MODELS_KEY, namespace_of(fingerprint), json.dumps(described))

    def append(self, batch: Sequence[Appending]) -> list[Appended]:
        """Write records in one atomic step; entry i of the answer belongs to batch[i]. O(bytes)."""
        keys = [self.keys.bell, self.keys.shelves, self.keys.forgotten]
        arguments: list[Any] = [BELL_ENTRIES]
        for item in batch:
            shelf, record = item.shelf, item.record
            tail = self.keys.tail(shelf)
            stream, entry_id = item.source or (tail, "")
            keys += [tail, self.keys.shelf(shelf), self.keys.tenant(shelf.tenant)]
            keys += [self.keys.owned(shelf.tenant)]
            keys += [self.keys.seen(shelf, record.request_id), stream]
            names = subjects(tenant=record.tenant, scope=record.scope, session=record.session)
            arguments += [shelf.name, item.encoded, len(record.token_ids), repr(record.begun_at)]
            arguments += [record.origin, entry_id, _milliseconds(item.retention_seconds)]
            arguments += [item.remember_seconds, *names, *[""] * (MAX_SUBJECTS - len(names))]
        return [_appended(answer) for answer in self.run(scripts.APPEND, keys, arguments)]

    def shelves(self) -> list[tuple[Shelf, int]]:
        """Every shelf and the time of its newest record in ms, newest first."""
        answer = self.client.zrevrange(self.keys.shelves, 0, -1, withscores=True)
        named = ((_shelf(name), int(score)) for name, score in answer)
        return [(shelf, score) for shelf, score in named if shelf is not None]

    def shelves_of(self, tenant: str) -> list[Shelf]:
        """Shelves of one tenant."""
        answer = self.client.smembers(self.keys.owned(tenant))
        return sorted(shelf for shelf in map(_shelf, answer) if shelf is not None)

    def tenant_sizes(self, tenant: str) -> Sizes:
        """What a tenant holds."""
        answer = self.client.hmget(self.keys.tenant(tenant), "records", "tokens", "bytes")
        return Sizes(*(int(value or 0) for value in answer))

    def retention_seconds(self, tenant: str) -> float:
        """How long a tenant's records are kept, as its last record said; 0 for ever."""
        return int(self.client.hget(self.keys.tenant(tenant), "retention") or 0) / 1000

    def shelf_sizes(self, shelf: Shelf) -> ShelfSizes:
        """What a shelf holds."""
        names = [
            f"{part}{name}" for part in ("", "tail_") for name in ("records", "tokens", "bytes")
        ]
        *numbers, epoch = self.client.hmget(self.keys.shelf(shelf), *names, "epoch")
        counts = [int(value or 0) for value in numbers]
        return ShelfSizes(Sizes(*counts[:3]), Sizes(*counts[3:]), (epoch or b"").decode())

    def newest_id(self, stream: str) -> EntryId:
        """Id that the stream gave last, `BEGINNING` if there is no such stream."""
        if not self.client.exists(stream):
            return BEGINNING
        answer = self.client.xinfo_stream(stream)
        return parse_id(answer["last-generated-id"].decode())

    def wait(
        self, bell: EntryId, control: EntryId, *, block_milliseconds: int | None
    ) -> tuple[list[tuple[EntryId, Ring | None]], list[tuple[EntryId, Tombstone | None]]]:
        """Shelves with something new, and tombstones, after two positions; waits for the first.

        None stands for an entry that is neither.
        """
        answer = self.client.xread(
            {self.keys.bell: id_text(bell), self.keys.control: id_text(control)},
            count=BELL_ENTRIES,
            block=block_milliseconds,
        )
        rung: list[tuple[EntryId, Ring | None]] = []
        tombstones: list[tuple[EntryId, Tombstone | None]] = []
        for stream, entries in _pairs(answer):
            for entry_id, fields in entries:
                position = parse_id(entry_id.decode())
                if stream.decode() == self.keys.control:
                    tombstones.append((position, _tombstone(fields)))
                else:
                    rung.append((position, _ring(fields)))
        return rung, tombstones

    def tombstones(self) -> list[Tombstone]:
        """Every tombstone that still stands."""
        answer = self.client.hgetall(self.keys.forgotten)
        return [Tombstone(name.decode(), float(before)) for name, before in answer.items()]

    def entomb(self, subject: str, before: float) -> float:
        """Set a tombstone; returns the time it reaches to, later if one stood there that does."""
        keys = [self.keys.forgotten, self.keys.control]
        return float(self.run(scripts.ENTOMB, keys, [subject, repr(before), CONTROL_ENTRIES]))

    def wither(self, before: float) -> int:
        """Drop tombstones that no record can be older than any more; returns how many."""
        return int(self.run(scripts.WITHER, [self.keys.forgotten], [repr(before)]))

    def read_tails(
        self, positions: Mapping[Shelf, EntryId], *, count: int = PAGE_ENTRIES
    ) -> dict[Shelf, list[Entry]]:
        """Entries after a position, at most `count` a shelf, oldest first; without waiting."""
        if not positions:
            return {}
        by_key = {self.keys.tail(shelf): shelf for shelf in positions}
        wanted = {key: id_text(positions[shelf]) for key, shelf in by_key.items()}
        answer = self.client.xread(wanted, count=count)
        return {by_key[key.decode()]: _entries(rows) for key, rows in _pairs(answer)}

    def now(self) -> float:
        """Unix time by Redis's clock."""
        seconds, microseconds = self.client.time()
        return float(seconds) + float(microseconds) / 1e6

    def tail_backwards(self, shelf: Shelf) -> Iterator[Entry]:
        """The tail's entries, newest first, a page at a time."""
        upper, count = "+", 16
        while True:
            page = _entries(self.client.xrevrange(self.keys.tail(shelf), max=upper, count=count))
            yield from page
            if len(page) < count:
                return
            upper, count = f"({id_text(page[-1].entry_id)}", PAGE_ENTRIES

    def segments(self, shelf: Shelf, after: EntryId = BEGINNING) -> list[SegmentInfo]:
        """Segments with a record after a position, oldest first."""
        answer = self.client.zrangebyscore(self.keys.index(shelf), after[0], "+inf")
        found = sorted((SegmentInfo.parse(member) for member in answer), key=lambda s: s.last_id)
        return [segment for segment in found if segment.last_id > after]

    def block(self, shelf: Shelf, segment: SegmentInfo) -> bytes | None:
        """A segment's block, None if it is gone."""
        found: bytes | None = self.client.get(self.keys.segment(shelf, id_text(segment.last_id)))
        return found

    def take_lease(self, name: str, holder: str, *, seconds: float) -> bool:
        """Take a lease for a while; False if somebody holds it."""
        key = self.keys.lease(name)
        return bool(self.client.set(key, holder, nx=True, px=int(seconds * 1000)))

    def seal(
        self,
        shelf: Shelf,
        segment: SegmentInfo,
        block: bytes,
        *,
        holder: str,
        lease: str,
        epoch: str,
        tail_bytes: int,
        ttl_seconds: float,
    ) -> bool:
        """Move the tail's oldest records into a segment.

        Args:
            shelf: whose.
            segment: the new segment.
            block: its block.
            holder: who holds `lease`.
            lease: name of the lease; given back.
            epoch: the shelf's when the records were read.
            tail_bytes: what the records took in the tail.
            ttl_seconds: after which the block is gone, 0 for never.

        Returns:
            False if the lease was lost or the tail was changed since: nothing has happened.
        """
        milliseconds, sequence = segment.last_id
        keys = [self.keys.lease(lease), self.keys.tail(shelf), self.keys.shelf(shelf)]
        keys += [self.keys.tenant(shelf.tenant), self.keys.index(shelf)]
        keys += [self.keys.segment(shelf, id_text(segment.last_id))]
        arguments = [holder, epoch, id_text((milliseconds, sequence + 1)), segment.num_records]
        arguments += [segment.num_tokens, tail_bytes, block, segment.member, milliseconds]
        return bool(self.run(scripts.SEAL, keys, [*arguments, int(ttl_seconds * 1000)]))

    def replace(
        self, shelf: Shelf, old: SegmentInfo, new: SegmentInfo | None, block: bytes = b""
    ) -> bool:
        """Put another block in a segment's place, or with None nothing.

        Its `last_id` must be the old one's. False if the segment is not what `old` says any more.
        """
        keys = [self.keys.index(shelf), self.keys.segment(shelf, id_text(old.last_id))]
        keys += [self.keys.shelf(shelf), self.keys.tenant(shelf.tenant)]
        arguments: list[Any] = [old.member, old.num_records, old.num_tokens, old.num_bytes]
        if new is None:
            arguments += ["", 0, b"", 0, 0]
        else:
            arguments += [new.member, new.last_id[0], block, new.num_records, new.num_tokens]
        return bool(self.run(scripts.REPLACE, keys, arguments))

    def cut(self, shelf: Shelf, entry_ids: Iterable[EntryId]) -> Sizes:
        """Remove entries of the tail; returns what this call removed."""
        keys = [self.keys.tail(shelf), self.keys.shelf(shelf), self.keys.tenant(shelf.tenant)]
        return Sizes(*map(int, self.run(scripts.CUT, keys, [id_text(e) for e in entry_ids])))

    def settle(self, shelf: Shelf) -> bool:
        """Take what expired off the accounts, and an empty shelf's keys away."""
        keys = [self.keys.tail(shelf), self.keys.shelf(shelf), self.keys.tenant(shelf.tenant)]
        keys += [self.keys.index(shelf), self.keys.shelves, self.keys.owned(shelf.tenant)]
        return bool(self.run(scripts.SETTLE, keys, [shelf.name]))

    def retire(self, stream: str, scopes: str, scope: str) -> bool:
        """Remove a stream of layout 1 that has been emptied; False if it holds something."""
        return bool(self.run(scripts.RETIRE, [stream, scopes], [scope]))


def registered_models(client: Client) -> list[ModelFingerprint]:
    """Models that have a journal, by name; `JournalStore.register` puts them there."""
    described = (json.loads(text) for text in client.hvals(MODELS_KEY))
    found = [ModelFingerprint(model=it["model"], tokenizer=it["tokenizer"]) for it in described]
    return sorted(found, key=lambda it: (it.model, it.tokenizer))


def parse_id(text: str) -> EntryId:
    """A stream entry's id as numbers that compare in the stream's order."""
    milliseconds, _, sequence = text.partition("-")
    return int(milliseconds), int(sequence or 0)


def id_text(entry_id: EntryId) -> str:
    """A stream entry's id as Redis writes it."""
    return f"{entry_id[0]}-{entry_id[1]}"


def _appended(answer: Sequence[int]) -> Appended:
    if answer[0] != RECORDED:
        return Appended(answer[0])
    pairs = [Sizes(0, answer[i], answer[i + 1]) for i in (1, 3, 5)]
    return Appended(RECORDED, *pairs)


def _entries(rows: Iterable[tuple[bytes, Mapping[bytes, bytes]]]) -> list[Entry]:
    return [
        Entry(
            parse_id(entry_id.decode()),
            fields.get(RECORD_FIELD, b""),
            _number(fields.get(TOKENS_FIELD, b"")),
            fields.get(ORIGIN_FIELD, b"").decode("utf-8", "replace"),
        )
        for entry_id, fields in rows
    ]


def _milliseconds(retention_seconds: float | None) -> int:
    return -1 if retention_seconds is None else ceil(retention_seconds * 1000)


def _number(text: bytes) -> int:
    return int(text) if text.isdigit() else 0


def _shelf(name: bytes) -> Shelf | None:
    try:
        return Shelf.parse(name.decode())
    except (RecordError, UnicodeDecodeError):
        return None


def _ring(fields: Mapping[bytes, bytes]) -> Ring | None:
    shelf = _shelf(fields.get(SHELF_FIELD, b""))
    if shelf is None:
        return None
    try:
        after, last = (parse_id(fields[name].decode()) for name in (b"after", b"last"))
        return Ring(shelf, fields[ORIGIN_FIELD].decode(), after, last, _number(fields[b"n"]))
    except (KeyError, ValueError):
        return Ring(shelf, "", BEGINNING, BEGINNING, 0)


def _tombstone(fields: Mapping[bytes, bytes]) -> Tombstone | None:
    try:
        return Tombstone(fields[b"subject"].decode(), float(fields[b"before"]))
    except (KeyError, ValueError):
        return None


def _pairs(answer: Any) -> Iterator[tuple[bytes, list[tuple[bytes, Mapping[bytes, bytes]]]]]:
    """Streams and their entries from XREAD's answer, a map or pairs by protocol version."""
    if isinstance(answer, dict):
        for stream, chunks in answer.items():
            for entries in chunks:
                yield stream, entries
        return
    yield from answer or ()
