"""Building corpus segments: the suffix array behind `CorpusSegment`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from paceline.caches._native import CorpusSegment
from paceline.errors import ConfigError, DraftError

BORDER: Final = -1
"""Stands before, between and after the sequences of a segment."""
MAX_SEGMENT_TOKENS: Final = 256_000_000
"""Most positions of one segment; building takes about 45 bytes of memory for each."""
NARROW_LIMIT: Final = 1 << 16
WIDE_LIMIT: Final = 1 << 24
"""Token ids are sorted as two bytes where all are below the first limit, as three below this."""


def build_segment(path: Path, token_ids: npt.ArrayLike) -> CorpusSegment:
    """Write the segment of a text to `path`, all or nothing, and open it.

    Args:
        path: file to write; one of that name is replaced.
        token_ids: int32, (num_positions,). Sequences of ids >= 0 with a border (-1) between two of
            them; borders at the ends may be left out, several in a row count as one.

    Raises:
        ConfigError: pydivsufsort is not installed.
        DraftError: an id is out of range, or there are more than `MAX_SEGMENT_TOKENS`.
        OSError: the file cannot be written.
    """
    given = np.asarray(token_ids, dtype=np.int32)
    if len(given) > MAX_SEGMENT_TOKENS:
        raise DraftError(
            f"a segment of {len(given)} tokens is too large, the limit is {MAX_SEGMENT_TOKENS}; "
            "split it"
        )
    text = with_borders(given)
    largest = int(text.max())
    if int(text.min()) < BORDER or largest + 1 >= WIDE_LIMIT:
        raise DraftError(
            f"token ids from {int(text.min())} to {largest} cannot be indexed; give ids from 0 to "
            f"{WIDE_LIMIT - 2}, and {BORDER} for a border"
        )
    CorpusSegment.build(str(path), text, sorted_places(text))
    return CorpusSegment(str(path))


def with_borders(token_ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The same sequences with one border before, between and after them. O(n)."""
    edge = np.array([BORDER], np.int32)
    text = np.concatenate([edge, token_ids, edge])
    repeated = np.zeros(len(text), np.bool_)
    repeated[1:] = (text[1:] == BORDER) & (text[:-1] == BORDER)
    kept: npt.NDArray[np.int32] = text[~repeated]
    return kept if len(kept) > 1 else np.concatenate([edge, edge])


def sorted_places(text: npt.NDArray[np.int32]) -> npt.NDArray[np.uint32]:
    """Places of a text sorted by the tokens before them, read backwards.

    The suffix array of the reversed text, by libdivsufsort (Mori; two-stage sorting, O(n log n)).
    It sorts bytes: an id becomes two or three of them, most significant first, and only the
    suffixes that start with a token are kept. A border becomes 0, below every token.

    Args:
        text: int32, (num_positions,), with a border first and last, ids below `WIDE_LIMIT` - 1.
    """
    try:
        from pydivsufsort import divsufsort
    except ImportError as error:
        raise ConfigError(
            "building a corpus needs pydivsufsort: pip install 'paceline[corpus]'"
        ) from error
    width = 2 if int(text.max()) + 1 < NARROW_LIMIT else 3
    suffixes: npt.NDArray[Any] = divsufsort(_as_bytes(text, width))
    starts_token = suffixes % width == 0
    places = suffixes[starts_token]
    del suffixes, starts_token  # most of the memory
    places //= width
    places = len(text) - places
    places = places[places < len(text)]
    real = (text[places] != BORDER) & (text[places - 1] != BORDER)
    kept: npt.NDArray[np.uint32] = places[real].astype(np.uint32)
    return kept


def _as_bytes(text: npt.NDArray[np.int32], width: int) -> npt.NDArray[np.uint8]:
    """The text read backwards, `width` bytes an entry, the border as 0."""
    wide = text[::-1].astype(">i4")
    wide += 1
    return np.ascontiguousarray(wide.view(np.uint8).reshape(-1, 4)[:, 4 - width :]).reshape(-1)
