"""Phrases: what a model says again and again, counted with a half-life.

Every replica counts the same phrases, because a phrase is chosen by its own content: one begins
wherever a hash of the next tokens says so (winnowing by a fixed residue: Manber, "Finding similar
files in a large file system", 1994), in one of `one_in` places on average.

A score is the base-2 logarithm of the decayed count, decayed forwards (Cormode et al., "Forward
decay", 2009): one occurrence at time t weighs 2^(t / half-life), so that nothing that is stored
has to be touched as time passes, and a logarithm, so that it never overflows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from paceline.caches.keys import Shelf
from paceline.caches.records import SequenceRecord
from paceline.errors import JournalError, RecordError

ANCHOR_TOKENS: Final = 4
_MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)
_NARROW: Final = b"\x02"
_WIDE: Final = b"\x04"
_DTYPES: Final[dict[bytes, np.dtype[Any]]] = {_NARROW: np.dtype("<u2"), _WIDE: np.dtype("<u4")}


@dataclass(frozen=True, slots=True, kw_only=True)
class PhraseSettings:
    """What is counted.

    Attributes:
        num_tokens: tokens of a phrase.
        one_in: about one in so many places of the output begins a phrase; a power of two.
        half_life_seconds: after which a count weighs half.
        max_phrases: kept for each workload of a shelf, the likeliest.
        max_workloads: kept for each shelf, those used last.
        max_pending: phrases that wait to be written; further ones are not counted.
    """

    num_tokens: int = 24
    one_in: int = 16
    half_life_seconds: float = 7 * 86_400.0
    max_phrases: int = 2048
    max_workloads: int = 16
    max_pending: int = 16_384

    def __post_init__(self) -> None:
        if self.num_tokens < ANCHOR_TOKENS + 1:
            raise JournalError(
                f"a phrase's num_tokens is {self.num_tokens}; give at least {ANCHOR_TOKENS + 1}"
            )
        if self.one_in < 1 or self.one_in & (self.one_in - 1):
            raise JournalError(f"one_in is {self.one_in}; give a power of two")
        for name in ("half_life_seconds", "max_phrases", "max_workloads", "max_pending"):
            if getattr(self, name) <= 0:
                raise JournalError(f"{name} is {getattr(self, name)}; give more than 0")


@dataclass(frozen=True, slots=True)
class PhraseSet:
    """The likeliest phrases of one workload of a shelf, likeliest first; int32, (num_tokens,)."""

    shelf: Shelf
    workload: str
    phrases: list[npt.NDArray[np.int32]]


@dataclass(slots=True)
class PhraseCounts:
    """Counts of one session, as far as they are not in Redis yet.

    Attributes:
        begun_at: when the earliest request among them began.
        counts: occurrences of each phrase.
    """

    begun_at: float = inf
    counts: Counter[bytes] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class PhraseOwner:
    """Whose phrases they are; the session, because it can be forgotten by itself."""

    shelf: Shelf
    workload: str
    session: str


class PhraseCounter:
    """Counts the phrases of records that were published; used under its caller's lock.

    Args:
        settings: what is counted.
    """

    def __init__(self, settings: PhraseSettings) -> None:
        self._settings = settings
        self._pending: dict[PhraseOwner, PhraseCounts] = {}
        self._num_pending = 0

    def add(self, record: SequenceRecord) -> None:
        """Count what the model said in a record. O(tokens)."""
        if self._num_pending >= self._settings.max_pending:
            return
        phrases = choose_phrases(record.token_ids[record.num_prompt :], self._settings)
        if not phrases:
            return
        owner = PhraseOwner(Shelf(record.scope, record.tenant), record.workload, record.session)
        counted = self._pending.setdefault(owner, PhraseCounts())
        counted.begun_at = min(counted.begun_at, record.begun_at)
        counted.counts.update(phrases)
        self._num_pending += len(phrases)

    def take(self) -> dict[PhraseOwner, PhraseCounts]:
        """What has been counted since the last call."""
        taken, self._pending, self._num_pending = self._pending, {}, 0
        return taken


def choose_phrases(said: npt.NDArray[np.int32], settings: PhraseSettings) -> list[bytes]:
    """The phrases in some output, as they are stored; the same ones wherever the text stands.

    O(tokens).
    """
    num_places = len(said) - settings.num_tokens + 1
    if num_places <= 0:
        return []
    hashed = np.zeros(num_places, np.uint64)
    tokens = said.astype(np.uint64)
    for offset in range(ANCHOR_TOKENS):
        hashed = (hashed + tokens[offset : offset + num_places] + np.uint64(1)) * _MULTIPLIER
        hashed ^= hashed >> np.uint64(29)
    chosen = np.flatnonzero((hashed & np.uint64(settings.one_in - 1)) == 0)
    return [encode_phrase(said[at : at + settings.num_tokens]) for at in chosen.tolist()]


def encode_phrase(token_ids: npt.NDArray[np.int32]) -> bytes:
    """A phrase as it is stored: two bytes a token where all ids fit, else four."""
    is_wide = int(token_ids.max()) > np.iinfo(np.uint16).max
    kind = _WIDE if is_wide else _NARROW
    return kind + token_ids.astype(_DTYPES[kind]).tobytes()


def decode_phrases(stored: Sequence[bytes]) -> list[npt.NDArray[np.int32]]:
    """Phrases that `encode_phrase` wrote; what is none of its is left out."""
    found: list[npt.NDArray[np.int32]] = []
    for phrase in stored:
        try:
            found.append(_decode(phrase))
        except RecordError:
            continue
    return found


def _decode(phrase: bytes) -> npt.NDArray[np.int32]:
    dtype = _DTYPES.get(phrase[:1])
    if dtype is None or len(phrase) == 1 or (len(phrase) - 1) % dtype.itemsize:
        raise RecordError(f"{len(phrase)} bytes are no phrase")
    stored: npt.NDArray[Any] = np.frombuffer(phrase, dtype=dtype, offset=1)
    if int(stored.max()) > np.iinfo(np.int32).max:
        raise RecordError(f"a phrase has token id {int(stored.max())}, too large for int32")
    tokens: npt.NDArray[np.int32] = stored.astype(np.int32)
    return tokens
