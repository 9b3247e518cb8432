"""Which part of a prompt its session has not shown before."""

from __future__ import annotations

from typing import Final

import numpy as np

from paceline.benchmarks.replay.base import TokenIds

ANCHOR_TOKENS: Final = 32


class Novelty:
    """Keeps the text of the present session's last request, prompt and reply.

    A prompt that was cut at its front no longer begins with that text; then its last 32 tokens are
    searched for in the prompt.
    """

    def __init__(self) -> None:
        self._session_id = ""
        self._known: TokenIds = np.empty(0, np.int32)

    def new_part(self, session_id: str, prompt_ids: TokenIds) -> TokenIds:
        """The prompt's tokens after what is known, all of them if nothing is. O(n)."""
        known = self._known
        if session_id != self._session_id or len(known) == 0:
            return prompt_ids
        if np.array_equal(prompt_ids[: len(known)], known):
            return prompt_ids[len(known) :]
        anchor = known[-ANCHOR_TOKENS:]
        ends = np.flatnonzero(prompt_ids == anchor[-1])
        for end in ends[::-1]:
            begin = end + 1 - len(anchor)
            if begin >= 0 and np.array_equal(prompt_ids[begin : end + 1], anchor):
                return prompt_ids[end + 1 :]
        return prompt_ids

    def remember(self, session_id: str, token_ids: TokenIds) -> None:
        """Take a finished request's text; a copy is made."""
        self._session_id, self._known = session_id, token_ids.copy()
