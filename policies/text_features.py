"""What a request's wording looks like in numbers: hashed n-grams, by scikit-learn.

A text becomes counts of its four-letter sequences within words, each hashed to one of 2**18 places
with a sign (feature hashing: Weinberger et al., ICML 2009; scikit-learn's `HashingVectorizer`), the
counts dampened by a logarithm and folded to `NUM_BUCKETS` numbers of length one. Numbers are all
read as ``0``, so that dates, ports and ids hardly count. Four letters rather than words:
on recorded first messages they told kinds apart better, at twice the time.

scikit-learn is imported when a `TextFeatures` is made and at no other time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from paceline.errors import ConfigError

NUM_BUCKETS: Final = 512
NUM_HASHES: Final = 2**18
MAX_CHARS: Final = 4096
PIECE_CHARS: Final = 2048
GRAM: Final = 4

Vectors = npt.NDArray[np.float32]
"""float32, (num_parts, NUM_BUCKETS): rows of length one, or zero where a part is absent."""

_DIGITS: Final = re.compile(r"\d+")
_SPACE: Final = re.compile(r"\s")


class TextFeatures:
    """Turns texts into vectors; may be used by several threads.

    Raises:
        ConfigError: scikit-learn is not installed.
    """

    def __init__(self) -> None:
        try:
            from sklearn.feature_extraction.text import HashingVectorizer
        except ImportError as error:
            raise ConfigError(
                "naming workloads by their text needs scikit-learn: pip install 'paceline[proxy]', "
                "or set workloads.clusters to false"
            ) from error
        self._hashing: Any = HashingVectorizer(
            analyzer="char_wb",
            ngram_range=(GRAM, GRAM),
            preprocessor=_without_numbers,
            n_features=NUM_HASHES,
            alternate_sign=True,
            norm=None,
            dtype=np.float32,
        )

    def vectors(self, parts: Sequence[str], *, pause: Callable[[], None] = lambda: None) -> Vectors:
        """One row a part, zero for an empty one. O(MAX_CHARS) each: about 1 ms for the longest.

        Of a part longer than `MAX_CHARS` the first three quarters and the last quarter count.

        Args:
            parts: texts.
            pause: called between pieces of `PIECE_CHARS` or so: counting holds the interpreter.
        """
        made = np.zeros((len(parts), NUM_BUCKETS), np.float32)
        for row, part in enumerate(parts):
            pieces = []
            for piece in _pieces(shortened(part)):
                pieces.append(self._hashing.transform([piece]))
                pause()
            if pieces:
                hashed = sum(pieces[1:], pieces[0])
                dampened = np.sign(hashed.data) * np.log1p(np.abs(hashed.data))
                made[row] = np.bincount(hashed.indices % NUM_BUCKETS, dampened, NUM_BUCKETS)
        return normalised(made)


def shortened(text: str) -> str:
    """The text, or its first three and last one of four parts of `MAX_CHARS` characters."""
    if len(text) <= MAX_CHARS:
        return text
    tail = MAX_CHARS // 4
    return f"{text[: MAX_CHARS - tail]} {text[-tail:]}"


def normalised(vectors: Vectors) -> Vectors:
    """Rows of length one; zero rows stay."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: Vectors = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return scaled


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces that end between words: sequences are within words, so none is lost."""
    start = 0
    while start < len(text):
        found = _SPACE.search(text, start + PIECE_CHARS)
        end = found.end() if found else len(text)
        yield text[start:end]
        start = end


def _without_numbers(text: str) -> str:
    return _DIGITS.sub("0", text.lower())
