"""Replies that repeat themselves, as small models' greedy ones do: reported apart everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

LOOP_NGRAM: Final = 8
LOOP_REPEATS: Final = 4


def has_loop(token_ids: Sequence[int]) -> bool:
    """Whether some run of 8 tokens occurs at least 4 times. O(len(token_ids))."""
    seen: dict[tuple[int, ...], int] = {}
    for start in range(len(token_ids) - LOOP_NGRAM + 1):
        gram = tuple(token_ids[start : start + LOOP_NGRAM])
        seen[gram] = seen.get(gram, 0) + 1
        if seen[gram] >= LOOP_REPEATS:
            return True
    return False
