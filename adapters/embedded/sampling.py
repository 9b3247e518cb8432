"""Drawing the target's next token so that speculation cannot change it, and foreseeing it.

The randomness for a token depends on the request's seed and the token's position and on nothing
else: each token of the vocabulary gets an exponential number, and of those that may be drawn the
one with the least number over probability wins, which happens with its probability (an exponential
race; the same as adding Gumbel noise to log probabilities and taking the largest). At each verified
position the target's own token is drawn that way, and a draft is accepted while it equals it.

So a drafter's probabilities help without a rejection step: it runs the same race with its own
distribution and drafts the winner, for a tree the next ones too. Where both distributions are
alike, so are the winners: two that differ by total variation d agree with probability
(1 - d) / (1 + d) at least (Daliri, Musco and Suresh, Coupling without Communication and
Drafter-Invariant Speculative Decoding, arXiv 2408.07978). Rejection sampling (Leviathan et al.,
arXiv 2211.17192; Chen et al., arXiv 2302.01318) accepts 1 - d of a single draft, but what it says
with a seed depends on what was drafted. A draft made without the race, from memory, is accepted
with p_target(draft), as by rejection sampling for drafts without probabilities. Of a drafted tree
the branch is followed that holds the target's own token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import numpy as np
import torch

from paceline.caches.tree import ROOT

RANDOM_BITS: Final = 52
"""Of each number: half a step more than the greatest is still less than one."""
FIRST_NUCLEUS: Final = 256
NUCLEUS_GROWTH: Final = 16


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to draw a reply.

    Attributes:
        temperature: 0 is greedy; >= 0.
        top_p: draw among the likeliest tokens that together have this probability, in (0, 1].
        seed: any integer.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken each time."""
        return self.temperature == 0


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely the target found a token.

    Attributes:
        token_id: the token.
        logprob: its natural log probability, before temperature and top_p.
        top: likeliest tokens and theirs, likeliest first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class NextDraws:
    """How a reply's next tokens will be drawn, known before any model has spoken.

    Attributes:
        params: of the request.
        position: index of the next token in the reply.
    """

    params: SamplingParams
    position: int


def draw(logits: torch.Tensor, params: SamplingParams, position: int) -> int:
    """The target's token for one position.

    Args:
        logits: float32, (vocabulary,).
        params: how to draw.
        position: index of the token in the reply; with the seed it fixes the outcome.

    Complexity: O(vocabulary), with top_p < 1 also O(n log n) for the n tokens that may be drawn.
    """
    if params.is_greedy:
        return int(logits.argmax())
    probs = distribution(logits, params)
    return int((probs / exponentials(params.seed, position, len(probs))).argmax())


def foresee(
    logits: torch.Tensor,
    draws: NextDraws,
    depths: Sequence[int],
    num_top: int,
    *,
    token_ids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that would come out if another model's logits were the target's, best guess first.

    Args:
        logits: float32, (places, known), of a drafter.
        draws: how the target's tokens will be drawn.
        depths: of each place, the tokens between it and the next token of the reply.
        num_top: tokens for each place, at most those that are known.
        token_ids: of the tokens that the drafter knows, int64 (known,); None for the vocabulary in
            its order.

    Returns:
        (token ids int64, guesses float32), both (places, num_top). Greedy, a guess is the drafter's
        probability. Otherwise it is the token's part of all probabilities over exponential numbers:
        how likely it wins if the target's log probabilities are the drafter's with Gumbel noise of
        scale one. The true scale is for whoever learns from the guesses' logits.

    Complexity: O(places * known), and O(vocabulary) for each depth where the target samples.
    """
    if draws.params.is_greedy:
        top = torch.softmax(logits, dim=-1).topk(num_top, dim=-1)
        return _named(top.indices, token_ids), top.values
    params = draws.params
    if params.top_p >= 1.0:
        probs = torch.softmax(logits / params.temperature, dim=-1)
    else:
        probs = torch.stack([distribution(row, params) for row in logits]).float()
    at, places = sorted(set(depths)), list(depths)
    size = logits.shape[-1] if token_ids is None else int(token_ids.max()) + 1
    numbers = [exponentials(params.seed, draws.position + d, size) for d in at]
    if token_ids is not None:
        numbers = [row[token_ids] for row in numbers]
    # single precision: near ties may fall otherwise than the target's, which costs a draft
    chances = torch.stack(numbers).reciprocal().float()[[at.index(d) for d in places]]
    scores = probs * chances
    top = scores.topk(num_top, dim=-1)
    return _named(top.indices, token_ids), top.values / scores.sum(dim=-1, keepdim=True)


def _named(columns: torch.Tensor, token_ids: torch.Tensor | None) -> torch.Tensor:
    return columns if token_ids is None else token_ids[columns]


def distribution(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """What is drawn from: zero for tokens beyond top_p; the others keep their probabilities.

    Args:
        logits: float32, (vocabulary,).
        params: not greedy.

    Returns:
        float64, (vocabulary,); sums to one only if top_p is 1.
    """
    probs = torch.softmax(logits.double() / params.temperature, dim=-1)
    if params.top_p >= 1.0:
        return probs
    size = FIRST_NUCLEUS
    while True:
        top = probs.topk(min(size, len(probs)))
        # the first token that reaches top_p is kept
        kept = int(torch.searchsorted(top.values.cumsum(0), params.top_p)) + 1
        if kept <= len(top.values) or size >= len(probs):
            nucleus = torch.zeros_like(probs)
            nucleus[top.indices[:kept]] = top.values[:kept]
            return nucleus
        size *= NUCLEUS_GROWTH


def verify(
    logits: torch.Tensor,
    token_ids: Sequence[int],
    parents: Sequence[int],
    params: SamplingParams,
    position: int,
) -> tuple[list[int], list[int]]:
    """The target's own tokens, as far as a drafted tree agrees with them and one further.

    Args:
        logits: float32, (nodes + 1, vocabulary): after the context, then after each node.
        token_ids: of the nodes; those side by side differ.
        parents: index of each node's parent, or `ROOT`.
        params: how to draw.
        position: index of the first token in the reply.

    Returns:
        (tokens, accepted nodes from the root on): one token more than nodes.
        O(nodes + accepted * cost of `draw`).
    """
    branches = {pair: node for node, pair in enumerate(zip(parents, token_ids, strict=True))}
    tokens: list[int] = []
    path: list[int] = []
    node: int | None = ROOT
    while node is not None:
        if node != ROOT:
            path.append(node)
        tokens.append(draw(logits[node + 1], params, position + len(tokens)))
        node = branches.get((node, tokens[-1]))
    return tokens, path


def logprobs_of(
    logits: torch.Tensor, token_ids: Sequence[int], num_top: int
) -> list[TokenLogprobs]:
    """Log probabilities of tokens.

    Args:
        logits: float32, (tokens, vocabulary).
        token_ids: the tokens.
        num_top: alternatives for each, >= 0.
    """
    logprobs = torch.log_softmax(logits.double(), dim=-1)
    values, indices = logprobs.topk(num_top, dim=-1)
    return [
        TokenLogprobs(
            token_id,
            float(logprobs[i, token_id]),
            tuple(zip(indices[i].tolist(), values[i].tolist(), strict=True)),
        )
        for i, token_id in enumerate(token_ids)
    ]


def exponentials(seed: int, position: int, size: int) -> torch.Tensor:
    """Numbers of the standard exponential distribution, fixed by `seed` and `position`.

    Returns:
        float64, (size,), > 0. The first of them do not depend on `size`.
    """
    key = blake2b(f"{seed}:{position}".encode(), digest_size=16).digest()
    # The raw output is part of what NumPy promises not to change.
    raw = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(size)
    uniform = ((raw >> np.uint64(64 - RANDOM_BITS)) + 0.5) / float(1 << RANDOM_BITS)
    return torch.from_numpy(-np.log(uniform))
