"""A model drafter's chains, and what memory drafts behind them."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paceline.caches import Source, TreeBatch
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

    def only(self, is_allowed: Sequence[bool]) -> ModelChains:
        """Those of allowed rows; of the others the chain counts for nothing."""
        is_sound = self.is_sound & np.asarray(is_allowed, np.bool_)
        return ModelChains(self.token_ids, self.top_token, self.top_prob, is_sound)

    def path_probabilities(self) -> npt.NDArray[np.float64]:
        """Of each chain's beginnings, by the model, float64 (rows, steps)."""
        is_drafted = self.top_token == self.token_ids[:, :, None]
        probs = np.where(is_drafted, self.top_prob, 0.0).sum(axis=2)
        return np.multiply.accumulate(probs, axis=1, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Supposed:
    """Tokens of the model's behind which memory is asked what it would draft.

    Attributes:
        rows: of the batch, rising; one may be there several times.
        token_ids: for each, the beginning of its row's chain.
        max_tokens: for each, how many may follow.
    """

    rows: list[int]
    token_ids: list[list[int]]
    max_tokens: list[int]

    def of(self, rows: Collection[int]) -> Supposed:
        """What is there of some rows."""
        kept = [i for i, row in enumerate(self.rows) if row in rows]
        return Supposed(
            [self.rows[i] for i in kept],
            [self.token_ids[i] for i in kept],
            [self.max_tokens[i] for i in kept],
        )


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
    """Memory's trees, and beside each the model's tokens with what memory drafts behind them.

    The model's tokens are nodes of `Source.MODEL`, which `Fusion` only goes through. O(nodes).
    """
    supposed, found = continued.supposed, continued.trees
    num_found = np.diff(found.offsets)
    # each continued beginning is a piece of its row: the model's tokens, then memory's
    num_led = np.array([len(row) for row in supposed.token_ids], np.int64) * (num_found > 0)
    sizes = num_led + num_found
    rows = np.array(supposed.rows, np.int64)
    num_own = np.diff(trees.offsets)
    totals = num_own + np.bincount(rows, sizes, minlength=len(trees)).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(totals)])
    ends = np.cumsum(sizes)
    before = ends - sizes
    # pieces lie in the order of their rows
    starts = num_own[rows] + before - before[np.searchsorted(rows, rows)]
    own = _spread(offsets[:-1], num_own)
    led = _spread(offsets[rows] + starts, num_led)
    behind = _spread(offsets[rows] + starts + num_led, num_found)
    result = TreeBatch(
        offsets,
        np.empty(offsets[-1], np.int32),
        np.empty(offsets[-1], np.int32),
        np.zeros(offsets[-1], np.float32),
        np.full(offsets[-1], Source.MODEL, np.uint8),
    )
    for at, held in ((own, trees), (behind, found)):
        result.token_ids[at] = held.token_ids
        result.prob[at] = held.prob
        result.source[at] = held.source
    kept = itertools.compress(supposed.token_ids, (num_found > 0).tolist())
    result.token_ids[led] = list(itertools.chain.from_iterable(kept))
    result.parent[own] = trees.parent
    places = _spread(np.zeros_like(num_led), num_led)
    result.parent[led] = np.where(places == 0, ROOT, np.repeat(starts, num_led) + places - 1)
    result.parent[behind] = found.parent + np.repeat(starts + num_led, num_found)
    return result


def _spread(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The numbers from each start on, as many as its length, one after the other."""
    before = np.cumsum(lengths) - lengths
    spread: npt.NDArray[np.int64] = np.repeat(starts - before, lengths)
    spread += np.arange(len(spread))
    return spread
