"""`TreeBatch`: the drafts of a whole batch in the flat arrays that the index returned."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from paceline.caches.tree import TokenTree


@dataclass(frozen=True, slots=True, eq=False)
class TreeBatch:
    """Trees of several requests: that of request i is the slice offsets[i]:offsets[i + 1].

    Making 256 `TokenTree`s takes longer than drafting them; what needs only part of each tree
    reads these arrays.

    Attributes:
        offsets: int64, (num_requests + 1,), rising from 0 to num_nodes.
        token_ids: int32, (num_nodes,).
        parent: int32, (num_nodes,); counts within its own slice.
        prob: float32, (num_nodes,).
        source: uint8, (num_nodes,).
    """

    offsets: npt.NDArray[np.int64]
    token_ids: npt.NDArray[np.int32]
    parent: npt.NDArray[np.int32]
    prob: npt.NDArray[np.float32]
    source: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        """Number of requests."""
        return len(self.offsets) - 1

    def trees(self) -> list[TokenTree]:
        """Views of each request's tree, in order."""
        return [
            TokenTree(self.token_ids[a:b], self.parent[a:b], self.prob[a:b], self.source[a:b])
            for a, b in pairwise(self.offsets.tolist())
        ]

    def token_lists(self) -> list[list[int]]:
        """The tokens of each request's tree in node order: its draft, where the trees are chains.

        O(num_nodes), a fraction of the time of `trees`.
        """
        tokens = self.token_ids.tolist()
        return [tokens[a:b] for a, b in pairwise(self.offsets.tolist())]

    def path_probabilities(self) -> npt.NDArray[np.float64]:
        """P(node accepted), float64 (num_nodes,): of it and all before it in its own tree.

        O(num_nodes); of chains, which is what vLLM verifies, without a loop.
        """
        places = np.arange(len(self.prob)) - np.repeat(self.offsets[:-1], np.diff(self.offsets))
        if not np.array_equal(self.parent, places - 1):
            each = [tree.path_probabilities() for tree in self.trees()]
            return np.concatenate([np.empty(0), *each])
        sums = np.cumsum(np.log(np.maximum(self.prob, LEAST_PROBABILITY), dtype=np.float64))
        before = np.concatenate([[0.0], sums])[np.arange(len(sums)) - places]
        chances: npt.NDArray[np.float64] = np.exp(sums - before)
        return chances

    def first(self, num_nodes: npt.NDArray[np.int64]) -> TreeBatch:
        """The first nodes of each tree, all of them where it has no more. O(num_nodes).

        Args:
            num_nodes: int64, (num_requests,). How many of each.
        """
        sizes = np.diff(self.offsets)
        places = np.arange(len(self.prob)) - np.repeat(self.offsets[:-1], sizes)
        is_kept = places < np.repeat(num_nodes, sizes)
        return TreeBatch(
            np.concatenate([[0], np.cumsum(np.minimum(sizes, num_nodes))]),
            self.token_ids[is_kept],
            self.parent[is_kept],
            self.prob[is_kept],
            self.source[is_kept],
        )


LEAST_PROBABILITY: Final = 1e-30
"""Taken for a node that cannot be accepted, so that it has a logarithm."""
