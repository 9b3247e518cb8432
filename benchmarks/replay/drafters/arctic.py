"""Arctic Inference's suffix decoding, driven as vLLM's `suffix` proposer drives it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np

from paceline.benchmarks.peers.arctic import SuffixCache, SuffixCacheClass
from paceline.benchmarks.replay.base import Draft, Memory, TokenIds
from paceline.benchmarks.replay.drafters.context import Context

MAX_CACHED_REQUESTS: Final = 10_000
MIN_TOKEN_PROBABILITY: Final = 0.1


class ArcticDrafter:
    """One cache a scope: a suffix tree of the open request, and one of all replies.

    Oliaro et al., SuffixDecoding (arXiv 2411.04975), in the implementation its authors ship.

    Args:
        cache_class: `SuffixDecodingCache`.
        depth: deepest level of the trees, and the tokens that a match may reach back.
        factor: most tokens drafted, per matched token.
        max_cached_requests: replies that the shared tree keeps, -1 for all.
    """

    def __init__(
        self,
        cache_class: SuffixCacheClass,
        *,
        depth: int,
        factor: float,
        max_cached_requests: int = MAX_CACHED_REQUESTS,
    ) -> None:
        self._depth = depth
        self._factor = factor
        self._num_tokens = 0
        self._cache: SuffixCache = cache_class(depth, max_cached_requests)
        self._contexts: dict[int, Context] = {}

    def remember(self, sequences: Iterable[TokenIds]) -> None:
        """Add sequences to the shared tree as replies of earlier requests."""
        for number, sequence in enumerate(sequences):
            name = f"earlier-{number}"
            self._cache.start_request(name, np.array([], np.int32))
            self._cache.add_active_response(name, sequence.tolist())
            self._cache.stop_request(name)

    def start(self, request_id: int, session_id: str, scope: str, prompt_ids: TokenIds) -> None:
        """Build the tree of the prompt."""
        self._contexts[request_id] = Context(prompt_ids)
        self._cache.start_request(request_id, prompt_ids)

    def propose(self, request_id: int, max_tokens: int) -> Draft:
        """A chain from whichever tree scores higher."""
        context = self._contexts[request_id].token_ids
        draft = self._cache.speculate(
            request_id,
            context[-self._depth :],
            max_spec_tokens=max_tokens,
            max_spec_factor=self._factor,
            min_token_prob=MIN_TOKEN_PROBABILITY,
        )
        return Draft(draft.token_ids)

    def commit(self, request_id: int, token_ids: list[int]) -> None:
        """Add to both trees."""
        self._contexts[request_id].extend(token_ids)
        self._cache.add_active_response(request_id, token_ids)
        self._num_tokens += len(token_ids)

    def finish(self, request_id: int) -> None:
        """Free the prompt's tree."""
        self._cache.stop_request(request_id)
        del self._contexts[request_id]

    def memory(self) -> Memory | None:
        """The shared tree, by its own estimate."""
        tree = getattr(self._cache, "_global_tree", None)
        if tree is None or not self._num_tokens:
            return None
        return Memory(tree.estimate_memory(), self._num_tokens)
