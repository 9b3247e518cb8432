"""Records survive the wire, and nothing else is taken for one."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.caches.records import (
    NewerSchemaError,
    SequenceRecord,
    decode_record,
    encode_record,
    tokenizer_digest,
)
from paceline.errors import RecordError

texts = st.text(max_size=20)
token_lists = st.lists(st.integers(0, 2**31 - 1), max_size=200) | st.lists(
    st.integers(0, 65535), max_size=400
)


def record(token_ids: list[int], num_prompt: int = 0, *, scope: str = "tenant:a") -> SequenceRecord:
    return SequenceRecord(
        request_id="r",
        scope=scope,
        tenant="a",
        workload="w",
        session="s",
        origin="o",
        token_ids=np.array(token_ids, np.int32),
        num_prompt=num_prompt,
        finished_at=1.5,
        learn=True,
        drafter_group="g",
        temperature=0.7,
        drafter_version=3,
        num_before=12,
    )


@given(token_lists, texts, st.data())
def test_a_record_comes_back_as_it_went(
    token_ids: list[int], scope: str, data: st.DataObject
) -> None:
    """Encoding and decoding change nothing, whatever the tokens and names."""
    sent = record(token_ids, data.draw(st.integers(0, len(token_ids))), scope=scope)
    got = decode_record(encode_record(sent))
    np.testing.assert_array_equal(got.token_ids, sent.token_ids)
    assert got.token_ids.dtype == np.int32
    names = [f.name for f in msgspec.structs.fields(SequenceRecord) if f.name != "token_ids"]
    assert [getattr(got, n) for n in names] == [getattr(sent, n) for n in names]


@given(st.binary(max_size=200))
def test_foreign_bytes_are_refused(data: bytes) -> None:
    """Bytes that are no record raise RecordError and nothing else."""
    try:
        decode_record(data)
    except RecordError:
        return


@given(token_lists, st.integers(0, 10_000), st.integers(0, 255))
def test_damaged_records_are_refused_or_still_valid(
    token_ids: list[int], position: int, value: int
) -> None:
    """A flipped byte either raises RecordError or yields a well-formed record."""
    data = bytearray(encode_record(record(token_ids)))
    data[position % len(data)] = value
    try:
        got = decode_record(bytes(data))
    except RecordError:
        return
    assert (got.token_ids >= 0).all()
    assert 0 <= got.num_prompt <= len(got.token_ids)


def test_a_newer_schema_is_told_apart() -> None:
    """A record of a later version is recognised as such even if its fields are unknown."""
    fields = msgspec.msgpack.decode(encode_record(record([1, 2])))
    with pytest.raises(NewerSchemaError, match="schema 2"):
        decode_record(msgspec.msgpack.encode([2, *fields[1:]]))
    with pytest.raises(NewerSchemaError, match="schema 7"):
        decode_record(msgspec.msgpack.encode([7, {"all": "new"}]))


NUM_LATER = 5
"""Fields that records did not have at first, behind the others."""


def test_older_and_newer_records_are_read() -> None:
    """Fields that are not there yet have their defaults, those to come are passed over."""
    fields = msgspec.msgpack.decode(encode_record(record([1, 2])))
    older = decode_record(msgspec.msgpack.encode(fields[:-NUM_LATER]))
    assert (older.learn, older.drafter_group, older.temperature) == (False, "", 0.0)
    assert (older.drafter_version, older.num_before) == (0, -1)
    newer = decode_record(msgspec.msgpack.encode([*fields, "more", [7]]))
    assert (newer.learn, newer.drafter_group, newer.temperature) == (True, "g", 0.7)
    assert (newer.drafter_version, newer.num_before) == (3, 12)


def test_bad_tokens_are_refused_before_they_are_written() -> None:
    """A negative token id never reaches the journal."""
    with pytest.raises(RecordError, match="token id -1"):
        encode_record(record([5, -1]))


def test_small_vocabularies_take_at_most_two_bytes_a_token() -> None:
    """Ids under 65,536 are stored in two bytes, fewer when text repeats."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 65536, 4096).tolist()
    assert len(encode_record(record(noise))) <= 2 * 4096 + 128
    assert len(encode_record(record(noise[:256] * 16))) <= 4096


def test_tokenizer_digest_tells_vocabularies_apart() -> None:
    """The digest depends on every token's id and on nothing else."""
    digest = tokenizer_digest({"a": 0, "b": 1})
    assert digest == tokenizer_digest({"b": 1, "a": 0})
    assert digest != tokenizer_digest({"a": 1, "b": 0})
    assert digest != tokenizer_digest({"a": 0, "b": 1, "c": 2})
