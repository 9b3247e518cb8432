"""Drawing the target's next token so that speculation cannot change it.

The randomness for a token depends on the request's seed and the token's position and on nothing
else. At each verified position the target's own token is drawn with that position's number, and a
draft is accepted while it equals it. For a draft without probabilities this accepts with
p_target(draft) and otherwise yields a token of the target's distribution without the draft:
rejection sampling (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318), with a
coupling that makes a seeded reply the same with and without drafts.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import torch

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


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that looks random and is fixed by `seed` and `position`."""
    digest = blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> (64 - MANTISSA_BITS)) / float(1 << MANTISSA_BITS)


def _at(cumulative: torch.Tensor, number: float) -> int:
    """Index of the interval of `cumulative` that holds `number` of its total."""
    target = number * float(cumulative[-1])
    return min(int(torch.searchsorted(cumulative, target, right=True)), len(cumulative) - 1)
