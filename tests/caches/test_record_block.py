"""Blocks of records survive the wire, and nothing else is taken for one."""

from __future__ import annotations

import zlib

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.caches.record_block import StoredRecord, decode_block, encode_block
from paceline.caches.records import NewerSchemaError, SequenceRecord
from paceline.errors import RecordError

texts = st.text(max_size=20)
times = st.floats(0, 1e12)
token_lists = st.lists(st.integers(0, 2**31 - 1), max_size=50) | st.lists(
    st.integers(0, 65535), max_size=100
)


ONE = StoredRecord(
    (1, 0),
    SequenceRecord(
        request_id="r",
        scope="s",
        tenant="t",
        workload="",
        session="",
        origin="o",
        token_ids=np.arange(5, dtype=np.int32),
        num_prompt=2,
        finished_at=1.0,
    ),
)


@st.composite
def stored_records(draw: st.DrawFn) -> list[StoredRecord]:
    scope, tenant = draw(texts), draw(texts)
    stored = []
    for number in range(draw(st.integers(1, 6))):
        tokens = draw(token_lists)
        stored.append(
            StoredRecord(
                (draw(st.integers(0, 2**60)), number),
                SequenceRecord(
                    request_id=draw(texts),
                    scope=scope,
                    tenant=tenant,
                    workload=draw(texts),
                    session=draw(texts),
                    origin=draw(texts),
                    token_ids=np.array(tokens, np.int32),
                    num_prompt=draw(st.integers(0, len(tokens))),
                    finished_at=draw(times),
                    started_at=draw(times),
                    learn=draw(st.booleans()),
                    drafter_group=draw(texts),
                    temperature=draw(st.floats(-1, 2)),
                    drafter_version=draw(st.integers(0, 9)),
                    num_before=draw(st.integers(-1, 99)),
                ),
            )
        )
    return stored


def fields(stored: StoredRecord) -> list[object]:
    names = [f.name for f in msgspec.structs.fields(SequenceRecord)]
    values = [getattr(stored.record, name) for name in names]
    return [stored.entry_id, *(v.tolist() if isinstance(v, np.ndarray) else v for v in values)]


@given(stored_records())
def test_records_come_back_as_they_went(stored: list[StoredRecord]) -> None:
    """Packing and unpacking change nothing, whatever the tokens and names."""
    assert list(map(fields, decode_block(encode_block(stored)))) == list(map(fields, stored))


@given(stored_records(), st.integers(0, 10_000), st.integers(0, 255))
def test_damaged_blocks_are_refused(stored: list[StoredRecord], position: int, value: int) -> None:
    """A changed byte raises RecordError: the deflated part carries a checksum."""
    data = bytearray(encode_block(stored))
    position %= len(data)
    if data[position] == value:
        value ^= 1
    data[position] = value
    with pytest.raises(RecordError):
        decode_block(bytes(data))


@given(st.binary(max_size=100))
def test_foreign_bytes_are_refused(data: bytes) -> None:
    """Bytes that are no block raise RecordError and nothing else."""
    with pytest.raises(RecordError):
        decode_block(b"PB\x01" + data)


def test_columns_that_disagree_are_refused() -> None:
    """A well-formed block whose records do not share out its tokens is not used."""
    good = encode_block([ONE])
    columns = msgspec.msgpack.decode(zlib.decompress(good[7:]))
    for index, wrong in ((7, [4]), (7, [5, 0]), (7, [-5]), (6, [6]), (2, []), (14, [True, True])):
        raw = msgspec.msgpack.encode([*columns[:index], wrong, *columns[index + 1 :]])
        with pytest.raises(RecordError):
            decode_block(good[:3] + len(raw).to_bytes(4, "little") + zlib.compress(raw))


NUM_LATER = 5
"""Columns that blocks did not have at first, behind the others."""


def repacked(data: bytes, columns: list[object]) -> bytes:
    raw = msgspec.msgpack.encode(columns)
    return data[:3] + len(raw).to_bytes(4, "little") + zlib.compress(raw)


@given(stored_records())
def test_blocks_from_before_the_later_columns_are_read(stored: list[StoredRecord]) -> None:
    """An older block's records are as if nobody had let a drafter learn from them."""
    good = encode_block(stored)
    columns = msgspec.msgpack.decode(zlib.decompress(good[7:]))
    older = [
        StoredRecord(
            entry_id,
            msgspec.structs.replace(
                record,
                learn=False,
                drafter_group="",
                temperature=0.0,
                drafter_version=0,
                num_before=-1,
            ),
        )
        for entry_id, record in stored
    ]
    read = decode_block(repacked(good, columns[:-NUM_LATER]))
    assert list(map(fields, read)) == list(map(fields, older))


@given(stored_records())
def test_blocks_with_columns_of_the_future_are_read(stored: list[StoredRecord]) -> None:
    """What a newer build puts behind the columns is passed over."""
    good = encode_block(stored)
    columns = msgspec.msgpack.decode(zlib.decompress(good[7:]))
    read = decode_block(repacked(good, [*columns, [1.5] * len(stored), "more"]))
    assert list(map(fields, read)) == list(map(fields, stored))


def test_a_newer_block_is_told_apart() -> None:
    """A block of a later version is recognised as such."""
    with pytest.raises(NewerSchemaError, match="version 2"):
        decode_block(b"PB\x02" + bytes(20))


def test_a_version_that_never_was_is_refused() -> None:
    """There is none before the first."""
    good = encode_block([ONE])
    assert len(decode_block(good)) == 1
    with pytest.raises(RecordError, match="version 0; there is none below 1"):
        decode_block(good[:2] + b"\0" + good[3:])


def test_a_block_takes_less_than_its_records_apart() -> None:
    """Records that say alike things share their bytes."""
    rng = np.random.default_rng(0)
    phrase = rng.integers(0, 49_152, 200).astype(np.int32)
    stored = [
        StoredRecord(
            (number, 0),
            SequenceRecord(
                request_id=f"r{number}",
                scope="tenant:a",
                tenant="a",
                workload="w",
                session="s",
                origin="o" * 32,
                token_ids=phrase,
                num_prompt=100,
                finished_at=1.0,
            ),
        )
        for number in range(20)
    ]
    assert len(encode_block(stored)) < 2 * 2 * len(phrase)


def test_what_is_no_block_is_refused_before_it_is_written() -> None:
    """An empty block, or one of several tenants, cannot be made."""
    with pytest.raises(RecordError, match="at least one"):
        encode_block([])
