"""Successors of single tokens: what is left of Token Recycling without a model."""

from __future__ import annotations

import heapq
from itertools import pairwise
from typing import Final

from paceline.benchmarks.replay.base import MAX_DRAFT_TOKENS, Draft, Memory, TokenIds
from paceline.benchmarks.replay.drafters.context import Context
from paceline.benchmarks.replay.drafters.novelty import Novelty

NUM_SUCCESSORS: Final = 8
RANK_DECAY: Final = 0.5
"""How much less the next-older successor is worth when the tree's shape is chosen."""
DEPTH_DECAY: Final = 0.6
"""How much less a node is worth than its parent."""


class AdjacencyDrafter:
    """A table of each token's latest distinct successors, spread out as a tree of a fixed shape.

    Token Recycling (Luo et al., arXiv 2408.08696) keeps the model's top-k candidates after each
    token, also those it did not say, and needs its logits: a recorded reply has none, so that Token
    Recycling itself cannot be replayed. This is its data structure filled from text alone, and no
    measure of that method.
    """

    def __init__(self) -> None:
        self._successors: dict[int, list[int]] = {}
        self._contexts: dict[int, tuple[str, Context]] = {}
        self._novelty = Novelty()
        self._shape = tree_shape(MAX_DRAFT_TOKENS)

    def start(self, request_id: int, session_id: str, scope: str, prompt_ids: TokenIds) -> None:
        """Take up the successors in what is new of the prompt."""
        self._add(self._novelty.new_part(session_id, prompt_ids).tolist())
        self._contexts[request_id] = (session_id, Context(prompt_ids))

    def propose(self, request_id: int, max_tokens: int) -> Draft:
        """The shape's nodes as far as there are successors for them."""
        last = int(self._contexts[request_id][1].token_ids[-1])
        token_ids: list[int] = []
        parents: list[int] = []
        node_at = {-1: -1}  # place in the shape -> node
        for place, (above, rank) in enumerate(self._shape[:max_tokens]):
            parent = node_at.get(above)
            if parent is None:
                continue
            following = self._successors.get(last if parent < 0 else token_ids[parent], [])
            if rank < len(following):
                node_at[place] = len(token_ids)
                token_ids.append(following[rank])
                parents.append(parent)
        return Draft(token_ids, parents)

    def commit(self, request_id: int, token_ids: list[int]) -> None:
        """Take up the successors."""
        context = self._contexts[request_id][1]
        self._add([int(context.token_ids[-1]), *token_ids])
        context.extend(token_ids)

    def finish(self, request_id: int) -> None:
        """Keep the table; forget the request."""
        session_id, context = self._contexts.pop(request_id)
        self._novelty.remember(session_id, context.token_ids)

    def memory(self) -> Memory | None:
        """Python's objects are no measure of the method."""
        return None

    def _add(self, token_ids: list[int]) -> None:
        for token, successor in pairwise(token_ids):
            latest = self._successors.setdefault(token, [])
            if latest and latest[0] == successor:
                continue
            if successor in latest:
                latest.remove(successor)
            latest.insert(0, successor)
            del latest[NUM_SUCCESSORS:]


def tree_shape(num_nodes: int) -> list[tuple[int, int]]:
    """(parent's place, rank among its token's successors) of each node, most valuable first.

    A parent, -1 for the root, precedes its children. O(num_nodes · log num_nodes).
    """
    shape: list[tuple[int, int]] = []
    waiting: list[tuple[float, int, int]] = [(-1.0, -1, 0)]  # negated value, parent, rank
    while len(shape) < num_nodes:
        value, parent, rank = heapq.heappop(waiting)
        place = len(shape)
        shape.append((parent, rank))
        heapq.heappush(waiting, (value * DEPTH_DECAY, place, 0))
        if rank + 1 < NUM_SUCCESSORS:
            heapq.heappush(waiting, (value * RANK_DECAY, parent, rank + 1))
    return shape
