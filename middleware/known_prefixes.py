"""What of a session's prompts has been recorded already, told by digests alone.

Each turn of a conversation sends the whole conversation again. An engine keeps a finished request's
context for the session's next turn and records only what is new. The proxy keeps no words: it
remembers digests of the prefixes of what a session has recorded, at every block of tokens and at
each sequence's end, each digest made from the one before it (as engines name the blocks of their
prefix caches).
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b
from typing import Final

import numpy as np
import numpy.typing as npt

BLOCK_TOKENS: Final = 64
DIGEST_BYTES: Final = 8
MAX_ENDS: Final = 16
"""Ends of a session's sequences that are remembered, the latest: side conversations have theirs."""

Tokens = npt.NDArray[np.int32]


class KnownPrefixes:
    """Which prefixes of which sessions are recorded; used by one thread.

    Args:
        max_prefixes: digests held over all sessions (about 100 bytes each, one for `BLOCK_TOKENS`
            tokens); the sessions used least recently are forgotten first.
    """

    def __init__(self, max_prefixes: int = 262_144) -> None:
        self._max_prefixes = max_prefixes
        self._num_prefixes = 0
        self._sessions: OrderedDict[str, _Session] = OrderedDict()

    def __len__(self) -> int:
        """Number of sessions."""
        return len(self._sessions)

    def num_known(self, session: str, token_ids: Tokens) -> int:
        """How many of the first tokens the session has recorded before; O(tokens).

        Exact where a sequence goes on from the end of an earlier one, otherwise rounded down to
        whole blocks. 0 for a session that is not known.
        """
        known = self._sessions.get(session)
        if known is None:
            return 0
        self._sessions.move_to_end(session)
        num_known, blocks = 0, [b"", *_block_digests(token_ids)]
        for number, digest in enumerate(blocks):
            if digest in known.blocks:
                num_known = number * BLOCK_TOKENS
        for length, digest in known.ends:
            if num_known < length <= len(token_ids) and _end(blocks, token_ids, length) == digest:
                num_known = length
        return num_known

    def add(self, session: str, token_ids: Tokens) -> None:
        """Remember that a session has recorded a sequence, all of it. O(tokens)."""
        known = self._sessions.setdefault(session, _Session())
        self._sessions.move_to_end(session)
        self._num_prefixes -= len(known)
        blocks = [b"", *_block_digests(token_ids)]
        known.blocks.update(blocks[1:])
        end = len(token_ids), _end(blocks, token_ids, len(token_ids))
        known.ends.pop(end, None)
        known.ends[end] = None
        if len(known.ends) > MAX_ENDS:
            known.ends.popitem(last=False)
        self._num_prefixes += len(known)
        while self._num_prefixes > self._max_prefixes:
            _, oldest = self._sessions.popitem(last=False)
            self._num_prefixes -= len(oldest)


class _Session:
    __slots__ = ("blocks", "ends")

    def __init__(self) -> None:
        self.blocks: set[bytes] = set()
        self.ends: OrderedDict[tuple[int, bytes], None] = OrderedDict()  # lengths and digests

    def __len__(self) -> int:
        return len(self.blocks) + len(self.ends)


def _block_digests(token_ids: Tokens) -> list[bytes]:
    """Digest of the prefix up to the end of each whole block."""
    data = np.ascontiguousarray(token_ids, np.int32).tobytes()
    size = BLOCK_TOKENS * 4
    digests: list[bytes] = []
    previous = b""
    for start in range(0, len(data) - size + 1, size):
        previous = _digest(previous, data[start : start + size])
        digests.append(previous)
    return digests


def _end(blocks: list[bytes], token_ids: Tokens, length: int) -> bytes:
    """Digest of the first `length` tokens; `blocks` begins with the empty prefix's."""
    whole = length // BLOCK_TOKENS
    return _digest(blocks[whole], token_ids[whole * BLOCK_TOKENS : length].tobytes())


def _digest(previous: bytes, data: bytes) -> bytes:
    return blake2b(previous + data, digest_size=DIGEST_BYTES).digest()
