"""A model drafter's chains, and what memory drafts behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paceline.caches import Source, TokenTree, TreeBatch
from paceline.caches.tree import ROOT


@dataclass(frozen=True, slots=True, eq=False)
class ModelChains:
    """What a model drafter says of a batch; row i belongs to the batch's request i.

    Attributes:
        token_ids: int32, (rows, steps). The chain it drafted for each.
        top_token: int32, (rows, steps, width). Its likeliest tokens at each place of the chain, the
            context's end first.
        top_prob: float32, (rows, steps, width). Their probabilities.
        is_sound: bool, (rows,). Whether it has read all of the row's context; where it has not, its
            chain counts for nothing.
    """

    token_ids: npt.NDArray[np.int32]
    top_token: npt.NDArray[np.int32]
    top_prob: npt.NDArray[np.float32]
    is_sound: npt.NDArray[np.bool_]

    def rows(self, rows: Sequence[int]) -> ModelChains:
        """Those of some rows."""
        at = np.asarray(rows, np.int64)
        return ModelChains(
            self.token_ids[at], self.top_token[at], self.top_prob[at], self.is_sound[at]
        )

    def path_probabilities(self) -> npt.NDArray[np.float64]:
        """Of each chain's beginnings, by the model, float64 (rows, steps)."""
        is_drafted = self.top_token == self.token_ids[:, :, None]
        probs = np.where(is_drafted, self.top_prob, 0.0).sum(axis=2)
        return np.multiply.accumulate(probs, axis=1, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Supposed:
    """Tokens of the model's behind which memory is asked what it would draft.

    Attributes:
        rows: of the batch; one may be there several times.
        token_ids: for each, the beginning of its row's chain.
        max_tokens: for each, how many may follow.
    """

    rows: list[int]
    token_ids: list[list[int]]
    max_tokens: list[int]


@dataclass(frozen=True, slots=True, eq=False)
class Continued:
    """What memory drafts there.

    Attributes:
        supposed: behind what.
        trees: one for each.
    """

    supposed: Supposed
    trees: TreeBatch


def suppose(
    model: ModelChains, limits: npt.NDArray[np.int32], *, min_probability: float
) -> Supposed:
    """As much of each chain as is likely enough, and its first token alone.

    The longer beginning comes first: memory knows best what follows it. O(rows * steps * width).

    Args:
        model: the chains.
        limits: int32, (rows,). Most tokens of a draft.
        min_probability: what a beginning needs by the model's own account.
    """
    is_likely = model.path_probabilities() >= min_probability
    lengths = np.minimum(is_likely.sum(axis=1), limits - 1) * model.is_sound
    supposed = Supposed([], [], [])
    for row in np.flatnonzero(lengths > 0).tolist():
        for length in dict.fromkeys((int(lengths[row]), 1)):
            supposed.rows.append(row)
            supposed.token_ids.append(model.token_ids[row, :length].tolist())
            supposed.max_tokens.append(int(limits[row]) - length)
    return supposed


def joined(trees: TreeBatch, continued: Continued) -> TreeBatch:
    """Memory's trees, and behind the model's tokens what it drafts there.

    The model's tokens are nodes of `Source.MODEL`, which `Fusion` only goes through. O(nodes).
    """
    rows = [[tree] for tree in trees.trees()]
    supposed = continued.supposed
    for i, found in enumerate(continued.trees.trees()):
        if len(found):
            rows[supposed.rows[i]].append(_behind(supposed.token_ids[i], found))
    whole = [_beside(row) if len(row) > 1 else row[0] for row in rows]
    return TreeBatch(
        np.cumsum([0, *map(len, whole)], dtype=np.int64),
        np.concatenate([tree.token_ids for tree in whole]),
        np.concatenate([tree.parent for tree in whole]),
        np.concatenate([tree.prob for tree in whole]),
        np.concatenate([tree.source for tree in whole]),
    )


def _behind(token_ids: Sequence[int], found: TokenTree) -> TokenTree:
    """The model's tokens, and a tree of memory's behind the last of them."""
    led = TokenTree.chain(token_ids, prob=np.zeros(len(token_ids)), source=Source.MODEL)
    return TokenTree(
        np.concatenate([led.token_ids, found.token_ids]),
        np.concatenate([led.parent, found.parent + np.int32(len(led))]),
        np.concatenate([led.prob, found.prob]),
        np.concatenate([led.source, found.source]),
    )


def _beside(trees: Sequence[TokenTree]) -> TokenTree:
    """Several trees behind one context."""
    starts = np.cumsum([0, *map(len, trees)], dtype=np.int32)
    return TokenTree(
        np.concatenate([tree.token_ids for tree in trees]),
        np.concatenate([
            np.where(tree.parent == ROOT, ROOT, tree.parent + start).astype(np.int32)
            for tree, start in zip(trees, starts[:-1], strict=True)
        ]),
        np.concatenate([tree.prob for tree in trees]),
        np.concatenate([tree.source for tree in trees]),
    )  # fmt: skip
