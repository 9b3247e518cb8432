"""Blocks: many records of one shelf as one compressed value.

Layout of the bytes: ``PB``, version (1 byte), inflated length (4 bytes, little endian), then a
deflated msgpack array of columns. Columns, because what repeats (sessions, workloads, origins)
deflates to nothing beside each other, and because all tokens in a row deflate better than each
record's by itself: two bytes a token where all ids fit, else four, in plain order. (Byte planes
deflate a quarter worse on source code; see LOG.md.)
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from paceline.caches.records import NewerSchemaError, SequenceRecord
from paceline.errors import RecordError

BLOCK_VERSION: Final = 1
MAX_BLOCK_BYTES: Final = 268_435_456
"""Longest inflated block that a reader accepts; bounds what a damaged one can make it allocate."""
_MAGIC: Final = b"PB"
_HEADER: Final = struct.Struct("<2sBI")
_LEVEL: Final = 6
_NARROW_MAX: Final = int(np.iinfo(np.uint16).max)


class StoredRecord(NamedTuple):
    """A record and where it stood in its shelf's stream: entry id as (milliseconds, sequence)."""

    entry_id: tuple[int, int]
    record: SequenceRecord


class _Columns(msgspec.Struct, frozen=True, array_like=True):
    scope: str
    tenant: str
    request_ids: list[str]
    workloads: list[str]
    sessions: list[str]
    origins: list[str]
    num_prompts: list[int]
    num_tokens: list[int]
    finished_at: list[float]
    started_at: list[float]
    entry_milliseconds: list[int]
    entry_sequences: list[int]
    is_wide: bool
    tokens: bytes
    # Columns added later stand behind the others: older readers ignore them, and an older block,
    # which ends before them, has them empty.
    learn: list[bool] = []
    drafter_groups: list[str] = []
    temperatures: list[float] = []
    drafter_versions: list[int] = []
    num_before: list[int] = []


_LATER: Final = ("learn", "drafter_groups", "temperatures", "drafter_versions", "num_before")
_LATER_DEFAULTS: Final = (False, "", 0.0, 0, -1)
"""Of an older block's records; those of `SequenceRecord`."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Columns)


def encode_block(records: Sequence[StoredRecord]) -> bytes:
    """The records, at least one and all of one shelf, as one value.

    O(tokens); about 0.7 bytes and 50 ns a token for source code.

    Raises:
        RecordError: there are none, they are of several shelves, or too many for one block.
    """
    if not records:
        raise RecordError("a block of no records was asked for; seal at least one")
    first = records[0].record
    if any((r.scope, r.tenant) != (first.scope, first.tenant) for _, r in records):
        raise RecordError("a block holds records of one scope and tenant; these are of several")
    tokens = np.concatenate([record.token_ids for _, record in records])
    is_wide = bool(len(tokens)) and int(tokens.max()) > _NARROW_MAX
    raw = _encoder.encode(
        _Columns(
            scope=first.scope,
            tenant=first.tenant,
            request_ids=[r.request_id for _, r in records],
            workloads=[r.workload for _, r in records],
            sessions=[r.session for _, r in records],
            origins=[r.origin for _, r in records],
            num_prompts=[r.num_prompt for _, r in records],
            num_tokens=[len(r.token_ids) for _, r in records],
            finished_at=[r.finished_at for _, r in records],
            started_at=[r.started_at for _, r in records],
            entry_milliseconds=[entry_id[0] for entry_id, _ in records],
            entry_sequences=[entry_id[1] for entry_id, _ in records],
            is_wide=is_wide,
            tokens=tokens.astype("<u4" if is_wide else "<u2").tobytes(),
            learn=[r.learn for _, r in records],
            drafter_groups=[r.drafter_group for _, r in records],
            temperatures=[r.temperature for _, r in records],
            drafter_versions=[r.drafter_version for _, r in records],
            num_before=[r.num_before for _, r in records],
        )
    )
    if len(raw) > MAX_BLOCK_BYTES:
        raise RecordError(
            f"a block takes {len(raw)} bytes, the limit is {MAX_BLOCK_BYTES}; seal fewer records"
        )
    return _HEADER.pack(_MAGIC, BLOCK_VERSION, len(raw)) + zlib.compress(raw, _LEVEL)


def decode_block(data: bytes) -> list[StoredRecord]:
    """The records that `encode_block` wrote, in its order. O(tokens).

    The records' tokens are slices of one array.

    Raises:
        NewerSchemaError: a newer Paceline wrote it.
        RecordError: it is damaged or no block.
    """
    columns = _inflated(data)
    tokens = _tokens(columns)
    lists = (
        *(columns.request_ids, columns.workloads, columns.sessions, columns.origins),
        *(columns.num_prompts, columns.num_tokens, columns.finished_at, columns.started_at),
        *(columns.entry_milliseconds, columns.entry_sequences),
    )
    lengths = {len(column) for column in lists}
    lengths |= {len(column) for column in _later(columns) if column}
    if len(lengths) > 1:
        raise RecordError("a block's columns are of several lengths")
    if min(columns.num_tokens, default=0) < 0 or sum(columns.num_tokens) != len(tokens):
        raise RecordError(f"a block's records do not share out its {len(tokens)} tokens")
    if any(
        not 0 <= prompt <= count
        for prompt, count in zip(columns.num_prompts, columns.num_tokens, strict=True)
    ):
        raise RecordError("a block says of a record that it read more tokens than it has")
    return _records(columns, tokens)


def _records(columns: _Columns, tokens: npt.NDArray[np.int32]) -> list[StoredRecord]:
    offsets = np.concatenate([[0], np.cumsum(columns.num_tokens, dtype=np.int64)]).tolist()
    learn, groups, temperatures, versions, num_before = (
        column or [default] * len(columns.request_ids)
        for column, default in zip(_later(columns), _LATER_DEFAULTS, strict=True)
    )
    return [
        StoredRecord(
            (columns.entry_milliseconds[i], columns.entry_sequences[i]),
            SequenceRecord(
                request_id=columns.request_ids[i],
                scope=columns.scope,
                tenant=columns.tenant,
                workload=columns.workloads[i],
                session=columns.sessions[i],
                origin=columns.origins[i],
                token_ids=tokens[begin:end],
                num_prompt=columns.num_prompts[i],
                finished_at=columns.finished_at[i],
                started_at=columns.started_at[i],
                learn=learn[i],
                drafter_group=groups[i],
                temperature=temperatures[i],
                drafter_version=versions[i],
                num_before=num_before[i],
            ),
        )
        for i, (begin, end) in enumerate(pairwise(offsets))
    ]


def _later(columns: _Columns) -> list[list[Any]]:
    return [getattr(columns, name) for name in _LATER]


def _inflated(data: bytes) -> _Columns:
    if len(data) < _HEADER.size:
        raise RecordError(f"{len(data)} bytes are too few for a block")
    magic, version, num_bytes = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise RecordError(f"{len(data)} bytes that begin with {magic!r} are no block")
    if version < 1:
        raise RecordError(f"a block has version {version}; there is none below 1: it is damaged")
    if version > BLOCK_VERSION:
        raise NewerSchemaError(
            f"a block has version {version}, this Paceline reads up to {BLOCK_VERSION}; "
            "update it to use the block"
        )
    if num_bytes > MAX_BLOCK_BYTES:
        raise RecordError(f"a block announces {num_bytes} bytes, the limit is {MAX_BLOCK_BYTES}")
    try:
        raw = zlib.decompressobj().decompress(data[_HEADER.size :], num_bytes + 1)
        if len(raw) != num_bytes:
            raise RecordError(f"a block inflates to {len(raw)} bytes, {num_bytes} were announced")
        return _decoder.decode(raw)
    except (zlib.error, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"a block of {len(data)} bytes is damaged: {error}") from error


def _tokens(columns: _Columns) -> npt.NDArray[np.int32]:
    dtype: np.dtype[Any] = np.dtype("<u4" if columns.is_wide else "<u2")
    if len(columns.tokens) % dtype.itemsize:
        raise RecordError(f"a block's tokens take {len(columns.tokens)} bytes, not a whole number")
    stored: npt.NDArray[Any] = np.frombuffer(columns.tokens, dtype=dtype)
    if len(stored) and int(stored.max()) > np.iinfo(np.int32).max:
        raise RecordError(f"a block has token id {int(stored.max())}, too large for int32")
    tokens: npt.NDArray[np.int32] = stored.astype(np.int32)
    return tokens
