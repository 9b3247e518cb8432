"""What policies have seen, as versioned plain data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import msgspec

from paceline.errors import ConfigError

STATE_VERSION: Final = 1
"""Version that this build writes, and the newest that it reads."""
MOST_WEIGHT: Final = 1e9
"""No table holds more evidence: discounts bound it far below."""

TableName = tuple[str | None, int, int]
"""Workload, batch bucket and context bucket of a table; None and 0 stand for all."""
Row = list[float]
"""Evidence on one arm: how much, then what the kind of policy keeps."""


class TableState(msgspec.Struct, array_like=True):
    """Evidence on the arms in one table.

    Attributes:
        name: what it is of.
        num_updates: outcomes that it was ever taught, so that news can be told from what is known.
        rows: arm's name to its evidence; arms without any are left out.
    """

    name: TableName
    num_updates: int
    rows: dict[str, Row]


class BaselineState(msgspec.Struct, array_like=True):
    """Rate of the target alone in one context: see `Baseline`."""

    name: TableName
    weight: float
    log_rate: float
    deviation: float


class KeyState(msgspec.Struct, array_like=True):
    """Everything of one key."""

    key: int | str
    tables: list[TableState]
    baselines: list[BaselineState]


class PolicyState(msgspec.Struct):
    """One replica's own evidence.

    Attributes:
        version: of this format.
        kind: algorithm.
        drafter: id of the drafter that the arms with a model were seen with.
        keys: evidence by key.
    """

    version: int
    kind: str
    drafter: str
    keys: list[KeyState]


_decoder = msgspec.msgpack.Decoder(PolicyState)
_encoder = msgspec.msgpack.Encoder()


def encode_state(state: PolicyState) -> bytes:
    """As bytes (msgpack). O(size)."""
    return _encoder.encode(state)


def decode_state(data: bytes) -> PolicyState:
    """The state in some bytes, every number checked. O(size).

    Raises:
        ConfigError: they are none, or of a newer version.
    """
    try:
        version = msgspec.msgpack.decode(data, type=dict[str, msgspec.Raw]).get("version")
        number = msgspec.msgpack.decode(version, type=int) if version is not None else 0
        if number > STATE_VERSION:
            raise ConfigError(
                f"a policy's state is of version {number}, this Paceline reads up to "
                f"{STATE_VERSION}; update it, or start without the state"
            )
        state = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{len(data)} bytes are no policy's state ({error}); start without it"
        ) from error
    if number < 1 or not all(_is_sound(key) for key in state.keys):
        raise ConfigError(
            f"a policy's state of {len(data)} bytes has numbers that cannot be; start without it"
        )
    return state


def _is_sound(key: KeyState) -> bool:
    return all(
        table.num_updates >= 0
        and all(
            bool(row) and 0.0 <= row[0] <= MOST_WEIGHT and _are_finite(row)
            for row in table.rows.values()
        )
        for table in key.tables
    ) and all(
        0.0 <= each.weight <= MOST_WEIGHT
        and abs(each.log_rate) <= math.log(MOST_WEIGHT)
        and 0.0 < each.deviation <= MOST_WEIGHT
        for each in key.baselines
    )


def _are_finite(row: Iterable[float]) -> bool:
    return all(abs(number) <= MOST_WEIGHT for number in row)
