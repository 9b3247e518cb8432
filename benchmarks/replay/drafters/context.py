"""The tokens of one request, growing in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from paceline.benchmarks.replay.base import TokenIds

SPARE: Final = 1024


class Context:
    """Prompt and reply of a request in one buffer. Appending is O(1) a token, amortised."""

    def __init__(self, prompt_ids: TokenIds) -> None:
        self._buffer = np.empty(len(prompt_ids) + SPARE, np.int32)
        self._buffer[: len(prompt_ids)] = prompt_ids
        self._length = len(prompt_ids)

    def __len__(self) -> int:
        return self._length

    @property
    def token_ids(self) -> TokenIds:
        """A view, int32 (num_tokens,), valid until the next `extend`."""
        return self._buffer[: self._length]

    def extend(self, token_ids: Sequence[int]) -> None:
        """Append tokens."""
        end = self._length + len(token_ids)
        if end > len(self._buffer):
            self._buffer = np.concatenate([self._buffer, np.empty(end, np.int32)])
        self._buffer[self._length : end] = token_ids
        self._length = end
