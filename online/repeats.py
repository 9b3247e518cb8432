"""Replies that come again: what was learned from says nothing of how well something is learned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Final

import numpy as np
import numpy.typing as npt

from paceline.online.looks import never
from paceline.online.passages import Passage

DIGEST_BYTES: Final = 16
PART_PASSAGES: Final = 64
"""Passages that are compared between two pauses: a few ms."""
MOST_KNOWN: Final = 0.5
"""Share of what a passage is there for that may stand in replies which are learned from."""


def origin_of(prompt_ids: npt.NDArray[np.int32]) -> str:
    """Hex digest of a conversation's first prompt: who asks the same is told the same. O(tokens).

    All of the prompt counts. Agents share its beginning, the system's part, and whatever they ask
    begins alike.
    """
    return blake2b(prompt_ids.astype("<i4").tobytes(), digest_size=DIGEST_BYTES).hexdigest()


def without_learned(
    measured: Sequence[Passage],
    learned: Iterable[Passage],
    *,
    pause: Callable[[], None] = never,
) -> list[Passage]:
    """Passages that say something of a drafter's learning, in their order.

    Left out is one of whose said tokens more than `MOST_KNOWN` stand in replies that are, word for
    word, learned from as well: whatever was asked, and in whichever session. O(tokens).

    Args:
        measured: held out.
        learned: that a drafter may have been taught.
        pause: called after every `PART_PASSAGES` passages.
    """
    if not measured:
        return []
    known = {digest for passage in _paused(learned, pause) for digest, _ in replies_of(passage)}
    return [
        passage
        for passage in _paused(measured, pause)
        if sum(num for digest, num in replies_of(passage) if digest in known)
        <= MOST_KNOWN * passage.num_said
    ]


def _paused(passages: Iterable[Passage], pause: Callable[[], None]) -> Iterator[Passage]:
    for number, passage in enumerate(passages, 1):
        yield passage
        if number % PART_PASSAGES == 0:
            pause()


def replies_of(passage: Passage) -> Iterator[tuple[bytes, int]]:
    """(digest, tokens) of each run of tokens that were said. O(tokens)."""
    edges = np.flatnonzero(np.diff(passage.is_said, prepend=False, append=False))
    for first, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        said = passage.token_ids[first:end].tobytes()
        yield blake2b(said, digest_size=DIGEST_BYTES).digest(), end - first
