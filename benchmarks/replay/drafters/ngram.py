"""Prompt lookup: what followed the same few tokens earlier in the request."""

from __future__ import annotations

from typing import Final

import numpy as np

from paceline.benchmarks.replay.base import EMPTY, Draft, Memory, TokenIds
from paceline.benchmarks.replay.drafters.context import Context

MAX_MATCH: Final = 5


class NgramDrafter:
    """Copies what followed an earlier occurrence of the context's last 5, 4, 3 or 2 tokens.

    The longest match wins. As in vLLM's `ngram` method and prompt lookup decoding. O(context) a
    proposal, one vectorised pass.

    Args:
        num_tokens: most tokens drafted.
        first: take the earliest occurrence instead of the most recent one.
    """

    def __init__(self, num_tokens: int, *, first: bool = False) -> None:
        self._num_tokens = num_tokens
        self._first = first
        self._contexts: dict[int, Context] = {}

    def start(self, request_id: int, session_id: str, scope: str, prompt_ids: TokenIds) -> None:
        """Copy the prompt."""
        self._contexts[request_id] = Context(prompt_ids)

    def propose(self, request_id: int, max_tokens: int) -> Draft:
        """A chain that ends where the context does."""
        tokens = self._contexts[request_id].token_ids
        last = len(tokens) - 1
        places = np.flatnonzero(tokens[:last] == tokens[last])
        found = places[:0]
        for reach in range(1, MAX_MATCH):
            places = places[places >= reach]
            places = places[tokens[places - reach] == tokens[last - reach]]
            if len(places) == 0:
                break
            found = places  # the last `reach + 1` tokens end there
        if len(found) == 0:
            return EMPTY
        place = int(found[0] if self._first else found[-1])
        most = min(self._num_tokens, max_tokens)
        return Draft(tokens[place + 1 : place + 1 + most].tolist())

    def commit(self, request_id: int, token_ids: list[int]) -> None:
        """Append to the context."""
        self._contexts[request_id].extend(token_ids)

    def finish(self, request_id: int) -> None:
        """Forget the request."""
        del self._contexts[request_id]

    def memory(self) -> Memory | None:
        """Nothing is held between requests."""
        return None
