"""What a replay holds as one checked file, so that a restart goes on where it stood.

Layout of the bytes: ``PR``, version (1 byte), CRC-32 of what follows (4 bytes, little endian), then
a deflated msgpack array. All tokens stand in one row, two bytes each where all ids fit, else four.
"""

from __future__ import annotations

import os
import struct
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
import numpy as np

from paceline.caches.journal_store import EntryId
from paceline.caches.keys import Shelf
from paceline.errors import RecordError
from paceline.online.passages import Cutting, Flags, Passage, SessionText, TokenIds
from paceline.online.replay_pool import BucketKey, Pool

VERSION: Final = 1
MAX_INFLATED: Final = 1 << 33
_MAGIC: Final = b"PR"
_HEADER: Final = struct.Struct("<2sBI")
_NARROW_MAX: Final = int(np.iinfo(np.uint16).max)


class _Text(msgspec.Struct, frozen=True, array_like=True):
    """Of a passage or a session, all but its tokens."""

    num_tokens: int
    tenant: str
    scope: str
    workload: str
    session: str
    begun_at: float
    finished_at: float
    first: int = 0
    taught: int = 0
    touched_at: float = 0.0
    origin: str = ""


class _Bucket(msgspec.Struct, frozen=True, array_like=True):
    tenant: str
    workload: str
    bar: float
    num_recent: int
    num_kept: int


class _State(msgspec.Struct, frozen=True, array_like=True):
    namespace: str
    group: str
    positions: list[tuple[str, int, int]]
    pools: list[list[_Bucket]]
    texts: list[_Text]
    is_wide: bool
    tokens: bytes
    said: bytes


class Saved(NamedTuple):
    """What one file holds.

    Attributes:
        namespace: of the journal that it was made of.
        group: whose drafter learns from it.
        positions: the entry of each shelf that was read last.
        sessions: least recently used first, each with the time of its last turn.
    """

    namespace: str
    group: str
    positions: Mapping[Shelf, EntryId]
    sessions: Sequence[tuple[SessionText, float]]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_State)


class Snapshot(NamedTuple):
    """What is to be written: later changes of the replay do not reach it."""

    saved: Saved
    pools: list[list[_Bucket]]
    texts: list[_Text]
    token_ids: list[TokenIds]
    is_said: list[Flags]


def snapshot(saved: Saved, pools: Sequence[Pool]) -> Snapshot:
    """Everything as it is now; no token is copied. O(passages + sessions)."""
    passages = [passage for pool in pools for bucket in pool.buckets.values() for passage in bucket]
    held: list[Passage | SessionText] = [*passages, *(session for session, _ in saved.sessions)]
    return Snapshot(
        saved,
        [
            [
                _Bucket(*key, bucket.bar, len(bucket.recent), len(bucket.kept))
                for key, bucket in pool.buckets.items()
            ]
            for pool in pools
        ],
        [
            *map(_text_of, passages),
            *(
                msgspec.structs.replace(
                    _text_of(it), first=it.first, taught=it.taught, touched_at=touched_at
                )
                for it, touched_at in saved.sessions
            ),
        ],
        [each.token_ids for each in held],  # replaced when they change, never written into
        [each.is_said for each in held],
    )


def write(file: Path, taken: Snapshot) -> None:
    """Write the file, whole or not at all. O(tokens).

    Raises:
        OSError: it cannot be written.
    """
    token_ids = np.concatenate([np.empty(0, np.int32), *taken.token_ids])
    is_wide = bool(len(token_ids)) and int(token_ids.max()) > _NARROW_MAX
    state = _State(
        namespace=taken.saved.namespace,
        group=taken.saved.group,
        positions=[(shelf.name, *entry_id) for shelf, entry_id in taken.saved.positions.items()],
        pools=taken.pools,
        texts=taken.texts,
        is_wide=is_wide,
        tokens=token_ids.astype("<u4" if is_wide else "<u2").tobytes(),
        said=np.packbits(np.concatenate([np.empty(0, np.bool_), *taken.is_said])).tobytes(),
    )
    _replace(file, zlib.compress(_encoder.encode(state), 1))


def read(file: Path, pools: Sequence[Pool], cutting: Cutting) -> Saved:
    """Fill empty pools with what the file holds, each with what it held. O(tokens).

    Raises:
        OSError: it cannot be read.
        RecordError: it is damaged, or of another version; the pools may hold some of it.
    """
    data = file.read_bytes()
    state = _decoded(data, file)
    try:
        texts = _texts(state)
        for pool, buckets in zip(pools, state.pools, strict=True):
            for told in buckets:
                bucket = pool.restore(BucketKey(told.tenant, told.workload), told.bar)
                for restore, num in (
                    (bucket.restore_recent, told.num_recent),
                    (bucket.restore_kept, told.num_kept),
                ):
                    for _ in range(num):
                        restore(_passage(*next(texts)))
            pool.recount()
        sessions = [(_session(cutting, *text), text[0].touched_at) for text in texts]
        positions = {Shelf.parse(name): (ms, seq) for name, ms, seq in state.positions}
    except (ValueError, StopIteration) as error:
        raise RecordError(f"{file} is damaged: {error or 'it ends too early'}") from error
    return Saved(state.namespace, state.group, positions, sessions)


def _decoded(data: bytes, file: Path) -> _State:
    if len(data) < _HEADER.size:
        raise RecordError(f"{file} has {len(data)} bytes, too few for a replay")
    magic, version, checksum = _HEADER.unpack_from(data)
    if magic != _MAGIC or version != VERSION:
        raise RecordError(
            f"{file} begins with {data[:3]!r}, a replay of version {VERSION} with "
            f"{_MAGIC + bytes([VERSION])!r}; it is made anew"
        )
    body = data[_HEADER.size :]
    if zlib.crc32(body) != checksum:
        raise RecordError(f"{file} is damaged: its checksum is another")
    try:
        return _decoder.decode(zlib.decompressobj().decompress(body, MAX_INFLATED))
    except (zlib.error, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"{file} is damaged: {error}") from error


def _texts(state: _State) -> Iterator[tuple[_Text, TokenIds, Flags]]:
    """Each text with its tokens and marks, the passages first."""
    dtype = np.dtype("<u4" if state.is_wide else "<u2")
    token_ids = np.frombuffer(state.tokens, dtype).astype(np.int32)
    is_said = np.unpackbits(np.frombuffer(state.said, np.uint8)).astype(np.bool_)
    total = sum(text.num_tokens for text in state.texts)
    if total != len(token_ids) or total > len(is_said):
        raise ValueError(f"its texts do not share out its {len(token_ids)} tokens")
    begin = 0
    for text in state.texts:
        end = begin + text.num_tokens
        yield text, token_ids[begin:end].copy(), is_said[begin:end].copy()
        begin = end


def _text_of(held: Passage | SessionText) -> _Text:
    return _Text(
        num_tokens=len(held.token_ids),
        tenant=held.tenant,
        scope=held.scope,
        workload=held.workload,
        session=held.session,
        begun_at=float(held.begun_at),
        finished_at=held.finished_at,
        origin=held.origin,
    )


def _passage(text: _Text, token_ids: TokenIds, is_said: Flags) -> Passage:
    return Passage(
        token_ids=token_ids,
        is_said=is_said,
        tenant=text.tenant,
        scope=text.scope,
        workload=text.workload,
        session=text.session,
        begun_at=text.begun_at,
        finished_at=text.finished_at,
        origin=text.origin,
    )


def _session(cutting: Cutting, text: _Text, token_ids: TokenIds, is_said: Flags) -> SessionText:
    session = SessionText(
        cutting,
        tenant=text.tenant,
        scope=text.scope,
        session=text.session,
        origin=text.origin,
    )
    session.workload = text.workload
    session.begun_at, session.finished_at = text.begun_at, text.finished_at
    session.first, session.taught = text.first, text.taught
    session.token_ids, session.is_said = token_ids, is_said
    return session


def _replace(file: Path, body: bytes) -> None:
    descriptor, beside = tempfile.mkstemp(dir=file.parent, prefix=f"{file.name}.")
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(_HEADER.pack(_MAGIC, VERSION, zlib.crc32(body)))
            opened.write(body)
            opened.flush()
            os.fsync(opened.fileno())
        Path(beside).replace(file)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
