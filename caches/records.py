"""Records that cross processes: frozen, versioned, checked on read."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from paceline.errors import RecordError

SCHEMA_VERSION: Final = 1
"""Version of the records this build writes.

It reads this version and older ones; newer ones are skipped and counted.
"""


SHARED_GROUP: Final = "shared"
"""Group of tenants whose drafter is everybody's: that of records and requests that name none."""


class SequenceRecord(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What one finished request adds to its sharing scope.

    Attributes:
        request_id: id of the request, unique across engines; duplicates of it are ignored by
            readers.
        scope: sharing scope that may read the tokens (see `RequestInfo.scope`).
        tenant: tenant that said them.
        workload: name of the workload, "" if unknown.
        session: id of the session, "" if unknown.
        origin: id of the engine process that wrote the record.
        token_ids: int32, (num_prompt + num_output,). New prompt tokens, then the output.
        num_prompt: how many of `token_ids` were read rather than said.
        finished_at: Unix time in seconds at which the request finished.
        started_at: Unix time in seconds at which it began, 0 if unknown: what began before a
            tenant was forgotten is refused, whenever it ends.
        learn: whether a model drafter may be trained on it.
        drafter_group: whose drafter that is, "" for `SHARED_GROUP`.
        temperature: that the target said it at, 0 for greedily, below 0 if unknown.
        drafter_version: of the drafter that the engine ran when it ended, 0 for none or unknown.
        num_before: tokens of the session, as the engine read it, that stand before these; below 0
            if unknown.
    """

    request_id: str
    scope: str
    tenant: str
    workload: str
    session: str
    origin: str
    token_ids: npt.NDArray[np.int32]
    num_prompt: int
    finished_at: float
    started_at: float = 0.0
    learn: bool = False
    drafter_group: str = ""
    temperature: float = 0.0
    drafter_version: int = 0
    num_before: int = -1

    @property
    def begun_at(self) -> float:
        """The earliest time its tokens can be of: `started_at` where it is known."""
        return min(self.started_at, self.finished_at) if self.started_at else self.finished_at


class ModelFingerprint(msgspec.Struct, frozen=True):
    """Whose tokens a journal holds: never mix two models, tokenizers or adapters.

    Attributes:
        model: name or path of the target as served, with a LoRA adapter's name where one applies.
        tokenizer: hex digest over the tokenizer's vocabulary.
    """

    model: str
    tokenizer: str


class NewerSchemaError(RecordError):
    """The record was written by a newer Paceline; skip it and count it."""


class _Wire(msgspec.Struct, frozen=True, array_like=True):
    """The record as it is stored.

    A msgpack array, schema version first, so that any reader can tell it.
    """

    schema: int
    request_id: str
    scope: str
    tenant: str
    workload: str
    session: str
    origin: str
    num_prompt: int
    finished_at: float
    encoding: int
    num_tokens: int
    tokens: bytes
    # Fields added later stand behind the others: older readers ignore them.
    started_at: float = 0.0
    learn: bool = False
    drafter_group: str = ""
    temperature: float = 0.0
    drafter_version: int = 0
    num_before: int = -1


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Wire)
_any_decoder = msgspec.msgpack.Decoder()

_NARROW, _WIDE = 0, 1  # uint16 or uint32 tokens, little endian
_DEFLATED = 2  # added when the tokens are compressed
_DTYPES: Final[dict[int, np.dtype[Any]]] = {_NARROW: np.dtype("<u2"), _WIDE: np.dtype("<u4")}
MAX_RECORD_TOKENS: Final = 16_777_216
"""Longest sequence a reader accepts; bounds what a damaged record can make it allocate."""


def encode_record(record: SequenceRecord) -> bytes:
    """The record as bytes for the journal.

    Tokens take two bytes each where all ids fit, else four, and are deflated when that is shorter.
    O(tokens).

    Raises:
        RecordError: a token id is negative, or there are more than `MAX_RECORD_TOKENS`.
    """
    tokens = np.asarray(record.token_ids, dtype=np.int32)
    if len(tokens) > MAX_RECORD_TOKENS:
        raise RecordError(
            f"a record has {len(tokens)} tokens, the limit is {MAX_RECORD_TOKENS}; split it"
        )
    if len(tokens) and int(tokens.min()) < 0:
        raise RecordError(f"token id {int(tokens.min())} is negative; record only real tokens")
    encoding = _NARROW if not len(tokens) or int(tokens.max()) <= np.iinfo(np.uint16).max else _WIDE
    raw = tokens.astype(_DTYPES[encoding]).tobytes()
    deflated = zlib.compress(raw, level=1)
    if len(deflated) < len(raw):
        raw, encoding = deflated, encoding | _DEFLATED
    return _encoder.encode(
        _Wire(
            schema=SCHEMA_VERSION,
            request_id=record.request_id,
            scope=record.scope,
            tenant=record.tenant,
            workload=record.workload,
            session=record.session,
            origin=record.origin,
            num_prompt=record.num_prompt,
            finished_at=record.finished_at,
            encoding=encoding,
            num_tokens=len(tokens),
            tokens=raw,
            started_at=record.started_at,
            learn=record.learn,
            drafter_group=record.drafter_group,
            temperature=record.temperature,
            drafter_version=record.drafter_version,
            num_before=record.num_before,
        )
    )


def decode_record(data: bytes) -> SequenceRecord:
    """The record that `encode_record` wrote. O(tokens).

    Raises:
        NewerSchemaError: a newer Paceline wrote it.
        RecordError: it is damaged or not a record.
    """
    try:
        wire = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if _schema_of(data) > SCHEMA_VERSION:
            raise NewerSchemaError(_newer(_schema_of(data))) from error
        raise RecordError(
            f"a journal entry of {len(data)} bytes is not a record: {error}"
        ) from error
    if wire.schema > SCHEMA_VERSION:
        raise NewerSchemaError(_newer(wire.schema))
    tokens = _decode_tokens(wire)
    if not 0 <= wire.num_prompt <= len(tokens):
        raise RecordError(f"a record says {wire.num_prompt} of its {len(tokens)} tokens are prompt")
    return SequenceRecord(
        request_id=wire.request_id,
        scope=wire.scope,
        tenant=wire.tenant,
        workload=wire.workload,
        session=wire.session,
        origin=wire.origin,
        token_ids=tokens,
        num_prompt=wire.num_prompt,
        finished_at=wire.finished_at,
        started_at=wire.started_at,
        learn=wire.learn,
        drafter_group=wire.drafter_group,
        temperature=wire.temperature,
        drafter_version=wire.drafter_version,
        num_before=wire.num_before,
    )


def tokenizer_digest(vocabulary: Mapping[str, int]) -> str:
    """Hex digest of a tokenizer's vocabulary: equal exactly when every token has the same id.

    O(n log n).
    """
    digest = blake2b(digest_size=16)
    for token, token_id in sorted(vocabulary.items(), key=lambda item: item[::-1]):
        digest.update(f"{token_id}\0{token}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _decode_tokens(wire: _Wire) -> npt.NDArray[np.int32]:
    dtype = _DTYPES.get(wire.encoding & ~_DEFLATED)
    if dtype is None or not 0 <= wire.num_tokens <= MAX_RECORD_TOKENS:
        raise RecordError(
            f"a record has token encoding {wire.encoding} and {wire.num_tokens} tokens"
        )
    raw = wire.tokens
    num_bytes = wire.num_tokens * dtype.itemsize
    if wire.encoding & _DEFLATED:
        try:
            raw = zlib.decompressobj().decompress(raw, num_bytes + 1)
        except zlib.error as error:
            raise RecordError(f"a record's tokens cannot be inflated: {error}") from error
    if len(raw) != num_bytes:
        raise RecordError(f"a record's tokens take {len(raw)} bytes, {num_bytes} were announced")
    wide: npt.NDArray[Any] = np.frombuffer(raw, dtype=dtype)
    if len(wide) and int(wide.max()) > np.iinfo(np.int32).max:
        raise RecordError(f"a record has token id {int(wide.max())}, too large for int32")
    tokens: npt.NDArray[np.int32] = wide.astype(np.int32)
    return tokens


def _schema_of(data: bytes) -> int:
    """Schema version of any msgpack array whose first item is a number; 0 for anything else."""
    try:
        fields = _any_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return 0
    first = fields[0] if isinstance(fields, list) and fields else 0
    return first if isinstance(first, int) else 0


def _newer(schema: int) -> str:
    return (
        f"a record has schema {schema}, this Paceline reads up to {SCHEMA_VERSION}; "
        "update it to use the record"
    )
