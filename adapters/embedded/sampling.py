"""Drawing the target's next token so that speculation cannot change it.

The randomness for a token depends on the request's seed and the token's position and on nothing
else. At each verified position the target's own token is drawn with that position's number, and a
draft is accepted while it equals it. For a draft without probabilities this accepts with
p_target(draft) and otherwise yields a token of the target's distribution without the draft:
rejection sampling (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318), with a
coupling that makes a seeded reply the same with and without drafts. Of a drafted tree the branch
is followed that holds the target's own token, so that a level accepts with the summed probability
of its branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import torch

from paceline.caches.tree import ROOT

MANTISSA_BITS = 53


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


def draw(logits: torch.Tensor, params: SamplingParams, position: int) -> int:
    """The target's token for one position.

    Args:
        logits: float32, (vocabulary,).
        params: how to draw.
        position: index of the token in the reply; with the seed it fixes the outcome.

    Complexity: O(v) greedy or with top_p = 1, O(v log v) otherwise, v = vocabulary.
    """
    if params.is_greedy:
        return int(logits.argmax())
    probs = torch.softmax(logits.double() / params.temperature, dim=-1)
    number = uniform(params.seed, position)
    if params.top_p >= 1.0:
        return _at(probs.cumsum(0), number)
    ordered, token_ids = probs.sort(descending=True)
    cumulative = ordered.cumsum(0)
    # the first token that reaches top_p is kept
    kept = int(torch.searchsorted(cumulative, params.top_p)) + 1
    return int(token_ids[_at(cumulative[:kept], number)])


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


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that looks random and is fixed by `seed` and `position`."""
    digest = blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> (64 - MANTISSA_BITS)) / float(1 << MANTISSA_BITS)


def _at(cumulative: torch.Tensor, number: float) -> int:
    """Index of the interval of `cumulative` that holds `number` of its total."""
    target = number * float(cumulative[-1])
    return min(int(torch.searchsorted(cumulative, target, right=True)), len(cumulative) - 1)
