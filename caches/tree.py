"""`TokenTree`: the one shape in which every drafter hands over its draft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from paceline.errors import DraftError

ROOT: Final = -1
"""Parent of a node that continues the committed context directly."""


class Source(IntEnum):
    """Who drafted a node: the value of `TokenTree.source`.

    Never renumber: journalled statistics name them.
    """

    CONTEXT = 0
    """The request's own session: its prompt, its earlier turns, its reply so far."""
    WORKLOAD = 1
    """What other requests of the same workload said and read."""
    MODEL = 2
    """A model drafter."""
    TENANT = 3
    """What requests of the sharing scope's other workloads said and read."""
    CORPUS = 4
    """Text that was given to the sharing scope: `paceline corpus`."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenTree:
    """A draft: `num_nodes` candidate tokens after one request's committed context.

    Attributes:
        token_ids: int32, (num_nodes,). Token of each node.
        parent: int32, (num_nodes,). Index of the parent node, or `ROOT` (-1). A parent always
            precedes its children. In a chain `parent[i] == i - 1`.
        prob: float32, (num_nodes,), in [0, 1]. Calibrated P(node accepted | its parent accepted).
        source: uint8, (num_nodes,). `Source` of each node.

    The arrays are never written to after construction and stay valid as long as the tree lives.
    """

    token_ids: npt.NDArray[np.int32]
    parent: npt.NDArray[np.int32]
    prob: npt.NDArray[np.float32]
    source: npt.NDArray[np.uint8]

    @classmethod
    def empty(cls) -> TokenTree:
        """A draft of nothing: the engine decodes this round without speculation."""
        return cls(
            np.empty(0, np.int32),
            np.empty(0, np.int32),
            np.empty(0, np.float32),
            np.empty(0, np.uint8),
        )

    @classmethod
    def chain(
        cls,
        token_ids: npt.ArrayLike,
        *,
        prob: npt.ArrayLike | None = None,
        source: Source = Source.CONTEXT,
    ) -> TokenTree:
        """A chain of `token_ids`; `prob` defaults to 1. O(num_nodes)."""
        tokens = np.asarray(token_ids, dtype=np.int32)
        probs = (
            np.ones(len(tokens), np.float32) if prob is None else np.asarray(prob, dtype=np.float32)
        )
        return cls(
            tokens,
            np.arange(-1, len(tokens) - 1, dtype=np.int32),
            probs,
            np.full(len(tokens), source, np.uint8),
        )

    def __len__(self) -> int:
        return len(self.token_ids)

    def first(self, num_nodes: int) -> TokenTree:
        """Its first nodes, all of them if there are no more: views. O(1)."""
        return TokenTree(
            self.token_ids[:num_nodes],
            self.parent[:num_nodes],
            self.prob[:num_nodes],
            self.source[:num_nodes],
        )

    def path_probabilities(self) -> npt.NDArray[np.float64]:
        """P(node accepted), float64 (num_nodes,): of it and all before it. O(num_nodes)."""
        if self.is_chain():
            return np.cumprod(self.prob, dtype=np.float64)
        chances: list[float] = []
        for prob, parent in zip(self.prob.tolist(), self.parent.tolist(), strict=True):
            chances.append(prob if parent == ROOT else prob * chances[parent])
        return np.array(chances, np.float64)

    def num_followed(self, committed: Sequence[int]) -> int:
        """Nodes on the path that `committed` tokens follow from the root on. O(num_nodes)."""
        nodes = zip(self.parent.tolist(), self.token_ids.tolist(), strict=True)
        children = {pair: node for node, pair in enumerate(nodes)}
        node, num_nodes = ROOT, 0
        for token in committed:
            following = children.get((node, token))
            if following is None:
                break
            node, num_nodes = following, num_nodes + 1
        return num_nodes

    def is_chain(self) -> bool:
        """Whether every node continues the one before it (an empty tree does). O(num_nodes)."""
        return bool(np.array_equal(self.parent, np.arange(-1, len(self) - 1)))

    def validate(self) -> None:
        """Raise `DraftError` unless shapes, dtypes, parents and probabilities keep the contract.

        O(num_nodes).
        """
        columns = (
            ("token_ids", np.int32),
            ("parent", np.int32),
            ("prob", np.float32),
            ("source", np.uint8),
        )
        for name, dtype in columns:
            column = getattr(self, name)
            if column.shape != (len(self),) or column.dtype != dtype:
                raise DraftError(
                    f"TokenTree.{name} is {column.dtype}{column.shape}; "
                    f"needs {np.dtype(dtype)}({len(self)},), one entry a node"
                )
        misplaced = (self.parent < ROOT) | (self.parent >= np.arange(len(self)))
        if misplaced.any():
            node = int(np.flatnonzero(misplaced)[0])
            raise DraftError(
                f"TokenTree.parent[{node}] is {int(self.parent[node])}; a parent is -1 or an "
                "earlier node"
            )
        if not ((self.prob >= 0) & (self.prob <= 1)).all():
            raise DraftError(
                "TokenTree.prob has a value outside [0, 1]; give probabilities, not logits"
            )
