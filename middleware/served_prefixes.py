"""What an engine has served, told by digests of prefixes: a guess at what its prefix cache holds.

Requests are hashed as they stand in their bodies, in blocks that grow with their place: 512 bytes
at first, a sixteenth of where they begin further on, so that a conversation of 250 KB has about 70
and the length of a match is known to a sixteenth. Each digest is made from the one before it and
begins with the sharing scope, as the engine's own blocks begin with the scope's ``cache_salt``: one
scope never matches another's text. No words are kept. Python's keyed hash of bytes is the digest,
so that nobody outside can make two texts collide; digests hold within one process alone.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

MIN_BLOCK_BYTES: Final = 512
GROWTH: Final = 16
"""A block is a part of so many of what comes before it, and `MIN_BLOCK_BYTES` at least."""
MAX_HASHED_BYTES: Final = 1024 * 1024
"""What is behind is not looked at: a picture, or more text than engines hold."""


def _block_ends() -> tuple[int, ...]:
    ends = [MIN_BLOCK_BYTES]
    while (end := ends[-1] + max(MIN_BLOCK_BYTES, ends[-1] // GROWTH)) <= MAX_HASHED_BYTES:
        ends.append(end)
    return tuple(ends)


BLOCK_ENDS: Final = _block_ends()
"""Where blocks end, in bytes."""


def prefix_digests(scope: str, text: bytes) -> list[int]:
    """Digest of the prefix up to the end of each whole block. O(bytes), 0.3 ns each or so.

    Args:
        scope: whose text it is; other scopes get other digests.
        text: the prompt as it stands in a request.
    """
    digest = hash(scope)
    size, begin = len(text), 0
    digests: list[int] = []
    for end in BLOCK_ENDS:
        if end > size:
            break
        digest = hash((digest, hash(text[begin:end])))
        digests.append(digest)
        begin = end
    return digests


class ServedPrefixes:
    """The prefixes that one engine has served; the least recently used are forgotten first.

    Where a prefix is known, so is every shorter one of it: using one marks the shorter ones as used
    later than the longer ones, so that ends go first, as they do in the engine.

    Args:
        max_bytes: text remembered, what several prefixes share counted once.
        max_age_seconds: a prefix that was not used for longer is taken for gone: others may ask
            the engine too.
    """

    def __init__(self, max_bytes: int, *, max_age_seconds: float) -> None:
        self.max_bytes = max_bytes
        self._max_age_seconds = max_age_seconds
        self._num_bytes = 0
        self._blocks: OrderedDict[int, tuple[int, float]] = OrderedDict()  # bytes, last used

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self._blocks)

    @property
    def num_bytes(self) -> int:
        """Text remembered."""
        return self._num_bytes

    def num_known(self, digests: Sequence[int], now: float) -> int:
        """How many of the first blocks it has served and may still hold. O(log blocks)."""
        blocks, oldest = self._blocks, now - self._max_age_seconds
        low, high = 0, len(digests)
        while low < high:
            middle = (low + high) // 2
            found = blocks.get(digests[middle])
            if found is not None and found[1] >= oldest:
                low = middle + 1
            else:
                high = middle
        return low

    def num_pushed_out(self, num_bytes: int) -> int:
        """Bytes of others that would be forgotten to remember so many new ones. O(1)."""
        return min(max(self._num_bytes + num_bytes - self.max_bytes, 0), self._num_bytes)

    def add(self, digests: Sequence[int], now: float) -> None:
        """It serves them now. O(blocks)."""
        blocks = self._blocks
        for number in range(len(digests) - 1, -1, -1):
            digest = digests[number]
            known = blocks.get(digest)
            if known is None:
                size = BLOCK_ENDS[number] - (BLOCK_ENDS[number - 1] if number else 0)
                self._num_bytes += size
                blocks[digest] = size, now
            else:
                blocks[digest] = known[0], now
                blocks.move_to_end(digest)
        self._forget(now - self._max_age_seconds)

    def clear(self) -> None:
        """It has lost everything."""
        self._blocks.clear()
        self._num_bytes = 0

    def _forget(self, oldest: float) -> None:
        blocks = self._blocks
        while blocks and (
            self._num_bytes > self.max_bytes or next(iter(blocks.values()))[1] < oldest
        ):
            _, (size, _) = blocks.popitem(last=False)
            self._num_bytes -= size
