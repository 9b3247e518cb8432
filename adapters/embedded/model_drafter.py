"""A small model that drafts beside memory, and reads what memory drafts.

Its first pass of a round reads what was committed since and memory's whole tree behind it, so that
it has an opinion on every retrieved branch, and branches of its own everywhere, at the price of one
pass. Further passes go on from the end of the best chain, a token each, while it is likely enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from paceline.adapters.embedded.key_values import KeyValues
from paceline.adapters.embedded.prefixes import num_common
from paceline.adapters.embedded.target import Row, Target
from paceline.caches import FusedBatch, Fusion, TokenTree
from paceline.caches.tree import ROOT
from paceline.errors import ConfigError

TOP: Final = 8
"""Likeliest next tokens that are looked at after each token."""
PREFILL_TOKENS: Final = 512


@dataclass(frozen=True, slots=True)
class DraftWish:
    """What one request wants drafted.

    Attributes:
        request_id: whose.
        key: of those that may share what fusion learns.
        tokens: prompt and reply so far, int32 (tokens,).
        retrieved: memory's draft.
        max_tokens: most nodes.
    """

    request_id: str
    key: int
    tokens: npt.NDArray[np.int32]
    retrieved: TokenTree
    max_tokens: int


@dataclass(slots=True)
class _Reading:
    """Where the drafter stands in one request."""

    key_values: KeyValues
    tokens: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    """Of `key_values`, one for each."""


@dataclass(slots=True)
class _Places:
    """What it has read of what may come, in one round; the first place is the context."""

    parent: list[int] = field(default_factory=lambda: [ROOT])
    token: list[int] = field(default_factory=lambda: [0])
    paths: dict[tuple[int, ...], int] = field(default_factory=lambda: {(): 0})
    top_token: list[npt.NDArray[np.int32]] = field(default_factory=list)
    top_prob: list[npt.NDArray[np.float32]] = field(default_factory=list)

    def add(self, path: tuple[int, ...]) -> None:
        """A place behind one that is there."""
        self.parent.append(self.paths[path[:-1]])
        self.token.append(path[-1])
        self.paths[path] = len(self.paths)

    def add_top(self, logits: torch.Tensor) -> None:
        """The likeliest tokens after the places that have none yet, (places, vocabulary)."""
        top = torch.softmax(logits, dim=-1).topk(TOP, dim=-1)
        self.top_token.extend(top.indices.to(torch.int32).numpy())
        self.top_prob.extend(top.values.numpy())


class ModelDrafter:
    """Drafts from a small model, fused with what memory drafts.

    Args:
        model: with the target's tokenizer.
        target: what verifies.
        max_steps: most passes a round.
        max_branches: most nodes that continue one; 1 gives chains.
        min_probability: paths less likely than this are not drafted.

    Raises:
        ConfigError: the two do not share a vocabulary.
    """

    def __init__(
        self,
        model: Target,
        target: Target,
        *,
        max_steps: int = 4,
        max_branches: int = 1,
        min_probability: float = 0.1,
    ) -> None:
        sizes = [int(each.model.config.vocab_size) for each in (model, target)]
        if sizes[0] != sizes[1]:
            raise ConfigError(
                f"the drafter has {sizes[0]} tokens and the target {sizes[1]}; give a drafter with "
                "the target's tokenizer"
            )
        self.num_passes = 0
        self._model = model
        self._max_steps = max_steps
        self._max_branches = max_branches
        self._min_probability = min_probability
        self._fusion = Fusion(min_probability=min_probability)
        self._readings: dict[str, _Reading] = {}
        self._pending: tuple[FusedBatch, list[DraftWish]] | None = None

    def begin(self, request_id: str) -> None:
        """Open a request; its prompt is read when a draft is wanted first."""
        self._readings[request_id] = _Reading(self._model.sequence())

    def finish(self, request_id: str) -> None:
        """Close a request."""
        self._readings.pop(request_id, None)

    def forget(self, key: int) -> None:
        """Drop what fusion learned for a key."""
        self._fusion.forget(key)

    def propose(self, wishes: Sequence[DraftWish]) -> list[TokenTree]:
        """Fused drafts, one for each wish."""
        self._learn(wishes)
        if not wishes:
            return []
        places = [_Places() for _ in wishes]
        self._read_memory(wishes, places)
        trees = self._fuse(wishes, places, max_branches=1)
        for _ in range(self._max_steps - 1):
            going = [i for i, tree in enumerate(trees) if self._goes_on(wishes[i], places[i], tree)]
            if not going:
                break
            self._read_on(
                [wishes[i] for i in going], [places[i] for i in going], [trees[i] for i in going]
            )
            trees = self._fuse(wishes, places, max_branches=1)
        return self._fuse(wishes, places, max_branches=self._max_branches)

    def _read_memory(self, wishes: Sequence[DraftWish], places: Sequence[_Places]) -> None:
        """Read what was committed and memory's trees behind it."""
        rows: list[Row] = []
        for wish, place in zip(wishes, places, strict=True):
            reading = self._readings[wish.request_id]
            kept = min(num_common(reading.tokens, wish.tokens), len(wish.tokens) - 1)
            reading.key_values.crop(kept)
            self._read_prompt(wish, reading)
            tree = wish.retrieved
            for path in paths_of(tree):
                place.add(path)
            unread = wish.tokens[len(reading.key_values) :].tolist()
            rows.append(
                Row(
                    request_id=wish.request_id,
                    key_values=reading.key_values,
                    token_ids=[*unread, *tree.token_ids.tolist()],
                    parents=tree.parent.tolist(),
                    num_logits=len(tree.token_ids) + 1,
                )
            )
        for wish, place, logits in zip(wishes, places, self._forward(rows), strict=True):
            place.add_top(logits)
            reading = self._readings[wish.request_id]
            reading.key_values.crop(len(wish.tokens))
            reading.tokens = wish.tokens.copy()

    def _read_prompt(self, wish: DraftWish, reading: _Reading) -> None:
        """Read all but the last tokens, a part at a time."""
        while (held := len(reading.key_values)) < len(wish.tokens) - PREFILL_TOKENS:
            self._forward([
                Row(
                    request_id=wish.request_id,
                    key_values=reading.key_values,
                    token_ids=wish.tokens[held : held + PREFILL_TOKENS].tolist(),
                    num_logits=0,
                )
            ])  # fmt: skip

    def _goes_on(self, wish: DraftWish, place: _Places, tree: TokenTree) -> bool:
        """Whether the best chain ends where the drafter has not read, with room behind it."""
        path = tuple(tree.token_ids.tolist())
        if not path or path in place.paths or len(path) >= wish.max_tokens:
            return False
        return float(tree.prob.prod(dtype=np.float64)) >= self._min_probability

    def _read_on(
        self, wishes: Sequence[DraftWish], places: Sequence[_Places], trees: Sequence[TokenTree]
    ) -> None:
        """Read the best chain of each request to its end, which is where it has read least."""
        rows: list[Row] = []
        for wish, place, tree in zip(wishes, places, trees, strict=True):
            reading = self._readings[wish.request_id]
            text = np.concatenate([wish.tokens, tree.token_ids])
            held = num_common(reading.tokens, text)
            reading.key_values.crop(held)
            place.add(tuple(tree.token_ids.tolist()))
            rows.append(
                Row(
                    request_id=wish.request_id,
                    key_values=reading.key_values,
                    token_ids=text[held:].tolist(),
                )
            )
            reading.tokens = text
        for place, logits in zip(places, self._forward(rows), strict=True):
            place.add_top(logits)

    def _forward(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        self.num_passes += 1
        logits: list[torch.Tensor] = self._model.forward(rows)
        return logits

    def _fuse(
        self, wishes: Sequence[DraftWish], places: Sequence[_Places], *, max_branches: int
    ) -> list[TokenTree]:
        trees = [wish.retrieved for wish in wishes]
        offsets, token_ids, parent, prob, source, batch = self._fusion.fuse(
            np.cumsum([0, *(len(tree.token_ids) for tree in trees)], dtype=np.int64),
            np.concatenate([tree.token_ids for tree in trees]),
            np.concatenate([tree.parent for tree in trees]),
            np.concatenate([tree.prob for tree in trees]),
            np.concatenate([tree.source for tree in trees]),
            np.cumsum([0, *(len(place.parent) for place in places)], dtype=np.int64),
            np.array([parent for place in places for parent in place.parent], np.int32),
            np.array([token for place in places for token in place.token], np.int32),
            np.concatenate([top for place in places for top in place.top_token]),
            np.concatenate([top for place in places for top in place.top_prob]),
            keys=np.array([wish.key for wish in wishes], np.int64),
            max_tokens=np.array([wish.max_tokens for wish in wishes], np.int32),
            max_branches=max_branches,
        )
        self._pending = batch, list(wishes)
        return [
            TokenTree(token_ids[a:b], parent[a:b], prob[a:b], source[a:b])
            for a, b in pairwise(offsets.tolist())
        ]

    def _learn(self, wishes: Sequence[DraftWish]) -> None:
        """Learn from what has become of the last round's drafts."""
        if self._pending is None:
            return
        batch, drafted = self._pending
        self._pending = None
        now = {wish.request_id: wish.tokens for wish in wishes}
        committed = [
            now.get(wish.request_id, wish.tokens)[len(wish.tokens) :].tolist() for wish in drafted
        ]
        offsets = np.cumsum([0, *map(len, committed)], dtype=np.int64)
        self._fusion.learn(batch, np.array(list(chain.from_iterable(committed)), np.int32), offsets)


def paths_of(tree: TokenTree) -> list[tuple[int, ...]]:
    """The tokens that lead to each node of a tree, its own included. O(nodes * depth)."""
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(tree.token_ids.tolist(), tree.parent.tolist(), strict=True):
        paths.append((*(() if parent == ROOT else paths[parent]), token))
    return paths
