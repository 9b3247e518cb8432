"""`TreeBatch`: the drafts of a whole batch in the flat arrays that the index returned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

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

    @classmethod
    def of(cls, trees: Sequence[TokenTree]) -> TreeBatch:
        """One batch of trees. O(nodes)."""
        nothing = TokenTree.empty()
        each = [nothing, *trees]
        return cls(
            np.cumsum([0, *map(len, trees)], dtype=np.int64),
            np.concatenate([tree.token_ids for tree in each]),
            np.concatenate([tree.parent for tree in each]),
            np.concatenate([tree.prob for tree in each]),
            np.concatenate([tree.source for tree in each]),
        )

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
