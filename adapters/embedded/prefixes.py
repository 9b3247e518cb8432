"""Keys and values kept after a request, for the next that begins with the same tokens."""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from paceline.adapters.embedded.key_values import KeyValues
from paceline.adapters.request_info import RequestInfo

LEAST_TOKENS: Final = 16
"""Shortest common beginning that is worth a copy."""
LEAST_TAKEN: Final = 0.75
"""Part of a kept sequence from which on it is taken, not copied: what it would lose is short."""


@dataclass(frozen=True, slots=True)
class _Kept:
    owner: str
    place: tuple[bytes, int]
    tokens: npt.NDArray[np.int32]
    key_values: KeyValues


class PrefixStore:
    """The most recently used sequences, of any length, up to a number of bytes.

    A sequence is found by its owner's requests alone: how fast a prompt is read tells whether it
    was read before. Safe to use from several threads.

    Args:
        max_bytes: memory for all of them; 0 keeps none.

    Attributes:
        num_bytes: memory of those that are kept.
        generation: how often everything was let go.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[int, _Kept] = OrderedDict()  # least recently used first
        # an owner's sequences in the order of their tokens: next to where another would stand is
        # the one that shares most with it
        self._places: dict[str, list[tuple[bytes, int]]] = {}
        self._next = 0
        self._lock = threading.Lock()
        self.num_bytes = 0
        self.generation = 0

    def __len__(self) -> int:
        """Sequences kept."""
        return len(self._kept)

    def num_held(self, owner: str, tokens: npt.NDArray[np.int32]) -> int:
        """How many tokens the sequence would hold that `take` would give; 0 for none."""
        with self._lock:
            return self._longest(owner, tokens[:-1])[1]

    def take(self, owner: str, tokens: npt.NDArray[np.int32]) -> KeyValues | None:
        """A sequence to go on with, which holds the longest kept beginning of `tokens`.

        None if none is long enough. At least the last token is left to be read.
        O(tokens * log kept), of which all but one pass compares bytes.
        """
        with self._lock:
            best, longest = self._longest(owner, tokens[:-1])
            if not longest:
                return None
            kept = self._kept[best]
            if longest < LEAST_TAKEN * len(kept.tokens):
                self._kept.move_to_end(best)
                copied: KeyValues = kept.key_values.copy(longest)
                return copied
            self._drop(best)
            kept.key_values.crop(longest)
            return kept.key_values

    def keep(
        self, owner: str, tokens: npt.NDArray[np.int32], key_values: KeyValues, generation: int
    ) -> None:
        """Keep a sequence that holds `tokens`; it belongs to the store from now on.

        Args:
            owner: whose it is.
            tokens: int32, (tokens,).
            key_values: theirs.
            generation: of this store when the request began; an older one's is not kept.
        """
        if key_values.num_bytes > self._max_bytes or len(tokens) < LEAST_TOKENS:
            return
        with self._lock:
            if generation != self.generation:
                return
            self._next += 1
            place = (_ordered(tokens), self._next)
            self._kept[self._next] = _Kept(owner, place, tokens.copy(), key_values)
            insort(self._places.setdefault(owner, []), place)
            self.num_bytes += key_values.num_bytes
            while self.num_bytes > self._max_bytes:
                self._drop(next(iter(self._kept)))

    def clear(self) -> None:
        """Let everything go, and keep nothing of requests that run now."""
        with self._lock:
            self.generation += 1
            self._kept.clear()
            self._places.clear()
            self.num_bytes = 0

    def _longest(self, owner: str, asked: npt.NDArray[np.int32]) -> tuple[int, int]:
        """Which sequence shares most with `asked`, and how much; (0, 0) if none shares enough."""
        places = self._places.get(owner, [])
        behind = bisect_left(places, (_ordered(asked), 0))
        best, longest = 0, LEAST_TOKENS - 1
        for _, name in places[max(behind - 1, 0) : behind + 1]:
            length = num_common(self._kept[name].tokens, asked)
            if length > longest:
                best, longest = name, length
        return (best, longest) if best else (0, 0)

    def _drop(self, name: int) -> None:
        kept = self._kept.pop(name)
        self.num_bytes -= kept.key_values.num_bytes
        places = self._places[kept.owner]
        del places[bisect_left(places, kept.place)]
        if not places:
            del self._places[kept.owner]


def owner_of(info: RequestInfo) -> str:
    """Whose later requests may go on from this one's keys and values, "" for nobody's.

    A request that is not recorded leaves nothing behind.
    """
    return info.scope if info.record else ""


def _ordered(tokens: npt.NDArray[np.int32]) -> bytes:
    """Tokens as bytes that are in order when the tokens are."""
    return tokens.astype(">i4").tobytes()


def num_common(one: npt.NDArray[np.int32], other: npt.NDArray[np.int32]) -> int:
    """Length of the longest beginning that both share. O(length of the shorter)."""
    shorter = min(len(one), len(other))
    differs = one[:shorter] != other[:shorter]
    return int(differs.argmax()) if differs.any() else shorter
