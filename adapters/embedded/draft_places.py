"""What a model is to draft in a round, and what it has read of what may come."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from paceline.adapters.drafter_tally import OTHERS, Stratum
from paceline.adapters.embedded.sampling import NextDraws, SamplingParams, foresee
from paceline.caches import TokenTree
from paceline.caches.tree import ROOT

TOP: Final = 8
"""Likeliest next tokens that are looked at after each token."""
GREEDY: Final = NextDraws(SamplingParams(temperature=0.0), 0)
TokenPath = tuple[int, ...]
"""Tokens from the context's end on."""


@dataclass(frozen=True, slots=True)
class DraftWish:
    """What one request wants drafted.

    Attributes:
        request_id: whose.
        key: of those that may share what fusion learns.
        tokens: prompt and reply so far, int32 (tokens,).
        retrieved: memory's draft; the model reads as many of its first nodes as may be drafted.
        max_tokens: most nodes.
        draws: how the target draws the tokens that are to be drafted.
        num_left: most tokens that the request will still say.
        stratum: whose rounds its own are counted with.
        max_recalled: most tokens that memory may draft behind each of the model's; 0 for none.
    """

    request_id: str
    key: int
    tokens: npt.NDArray[np.int32]
    retrieved: TokenTree
    max_tokens: int
    draws: NextDraws = GREEDY
    num_left: int = 1
    stratum: Stratum = OTHERS
    max_recalled: int = 0

    @property
    def judged(self) -> TokenTree:
        """What the model reads of memory's draft."""
        return self.retrieved.first(self.max_tokens)


@dataclass(slots=True)
class Places:
    """What it has read of what may come, in one round; the first place is the context."""

    draws: NextDraws
    parent: list[int] = field(default_factory=lambda: [ROOT])
    token: list[int] = field(default_factory=lambda: [0])
    paths: dict[TokenPath, int] = field(default_factory=lambda: {(): 0})
    top_token: list[npt.NDArray[np.int32]] = field(default_factory=list)
    top_prob: list[npt.NDArray[np.float32]] = field(default_factory=list)

    def add(self, path: TokenPath) -> None:
        """A place behind one that is there."""
        self.parent.append(self.paths[path[:-1]])
        self.token.append(path[-1])
        self.paths[path] = len(self.paths)

    def add_top(self, logits: torch.Tensor, token_ids: torch.Tensor | None) -> None:
        """The likeliest tokens after the places that have none yet.

        Args:
            logits: float32, (places, known).
            token_ids: of the known tokens, as in `foresee`.
        """
        depths = [len(path) for path in islice(self.paths, len(self.top_token), None)]
        num_top = min(TOP, logits.shape[-1])
        tokens, guesses = foresee(logits, self.draws, depths, num_top, token_ids=token_ids)
        self.top_token.extend(tokens.to(torch.int32).numpy())
        self.top_prob.extend(guesses.to(torch.float32).numpy())

    def own_chain(self) -> list[int]:
        """What the model itself finds likeliest, token by token, as far as it has read that."""
        path: TokenPath = ()
        while (place := self.paths.get(path)) is not None and place < len(self.top_token):
            path = (*path, int(self.top_token[place][0]))
        return list(path)


def paths_of(tree: TokenTree) -> list[TokenPath]:
    """The tokens that lead to each node of a tree, its own included. O(nodes * depth)."""
    paths: list[TokenPath] = []
    for token, parent in zip(tree.token_ids.tolist(), tree.parent.tolist(), strict=True):
        paths.append((*(() if parent == ROOT else paths[parent]), token))
    return paths
