"""`TreeBatch`: the drafts of a whole batch in the flat arrays that the index returned."""

from __future__ import annotations

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
