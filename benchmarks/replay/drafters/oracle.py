"""The copy oracle: what the best choice of one earlier place would get accepted."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paceline.benchmarks.replay.base import (
    EMPTY,
    MAX_DRAFT_TOKENS,
    Draft,
    Memory,
    TokenIds,
)
from paceline.benchmarks.replay.episodes import Scope


def previous_factors(token_ids: TokenIds, max_length: int) -> npt.NDArray[np.int32]:
    """Longest previous factor at every position, as far as `max_length`.

    Entry i is the largest length up to `max_length` such that token_ids[i : i + length] also starts
    at an earlier position; the two may overlap. Substrings are told apart by class numbers, one
    token longer each round, and only those that occur twice are followed further.
    O(max_length · n log n).
    """
    factors = np.zeros(len(token_ids), np.int32)
    places = np.arange(len(token_ids))
    classes = np.zeros(len(token_ids), np.int64)
    num_tokens = int(token_ids.max(initial=0)) + 1
    for length in range(1, max_length + 1):
        inside = places + length <= len(token_ids)
        places, classes = places[inside], classes[inside]
        keys = classes * num_tokens + token_ids[places + length - 1]
        _, first, classes = np.unique(keys, return_index=True, return_inverse=True)
        factors[places[places[first[classes]] < places]] = length
        again = np.bincount(classes)[classes] > 1
        places, classes = places[again], classes[again]
        if len(places) == 0:
            break
    return factors


class Oracle:
    """Drafts the longest true continuation that can be copied from one earlier place.

    The place must follow the context's last `anchor` tokens. Earlier text is every message of every
    earlier episode of the scope and of the present one up to now, without the prompts' cut. As the
    position that a run reaches never decreases with the position it starts from, taking the longest
    run at every step also takes the fewest steps: this bounds every drafter that copies one place.

    Args:
        anchor: tokens that must match.
        own_episode: copy from the present episode only.
    """

    def __init__(self, *, anchor: int = 1, own_episode: bool = False) -> None:
        self._anchor = anchor
        self._own_episode = own_episode
        self._stream: TokenIds = np.empty(0, np.int32)
        self._runs: TokenIds = np.empty(0, np.int32)
        self._turns: list[tuple[int, int]] = []
        self._position = 0

    def prepare_scope(self, scope: Scope) -> None:
        """Find the longest run at every position of the scope's streams, laid end to end."""
        streams = [episode.stream for episode in scope.episodes]
        self._stream = np.concatenate([np.empty(0, np.int32), *streams])
        reach = MAX_DRAFT_TOKENS + self._anchor
        if self._own_episode:
            factors = np.concatenate(
                [np.empty(0, np.int32), *(previous_factors(s, reach) for s in streams)]
            )
        else:
            factors = previous_factors(self._stream, reach)
        self._runs = np.zeros_like(factors)
        self._runs[self._anchor :] = np.maximum(factors[: -self._anchor] - self._anchor, 0)
        starts = np.cumsum([0, *map(len, streams)])
        self._turns = [
            (int(start) + turn.begin, int(start) + turn.end)
            for start, episode in zip(starts, scope.episodes, strict=False)
            for turn in episode.turns
        ]

    def start(self, request_id: int, session_id: str, scope: str, prompt_ids: TokenIds) -> None:
        """Go to the request's reply; requests are numbered from 1 in the order of replay."""
        self._position = self._turns[request_id - 1][0]

    def propose(self, request_id: int, max_tokens: int) -> Draft:
        """The run, which is right by construction."""
        place = self._position
        left = self._turns[request_id - 1][1] - place
        length = min(int(self._runs[place]), left, max_tokens)
        return Draft(self._stream[place : place + length].tolist()) if length else EMPTY

    def commit(self, request_id: int, token_ids: list[int]) -> None:
        """Move on in the stream."""
        self._position += len(token_ids)

    def finish(self, request_id: int) -> None:
        """Nothing to do."""

    def memory(self) -> Memory | None:
        """An oracle's memory says nothing."""
        return None
