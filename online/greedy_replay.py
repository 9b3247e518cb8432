"""What greedy drafting would have accepted of what the target said, counted without drafting.

A chain is accepted as long as each of its tokens is what the target said, and until then the
drafter has read what the target said: so one pass over the text knows every round.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayCounts:
    """How a drafter does on some text of the target's.

    Attributes:
        num_tokens: that the target said.
        num_agreed: of them those where drafter and target find the same token likeliest.
        num_rounds: rounds that saying them takes.
        num_accepted: tokens that the drafter's chains bring in these, the target's own not counted.
    """

    num_tokens: int = 0
    num_agreed: int = 0
    num_rounds: int = 0
    num_accepted: int = 0

    @property
    def accepted_length(self) -> float:
        """Accepted tokens a round, 0 without rounds."""
        return self.num_accepted / max(self.num_rounds, 1)

    @property
    def agreement(self) -> float:
        """Share of the tokens where both find the same likeliest, 0 without tokens."""
        return self.num_agreed / max(self.num_tokens, 1)

    def __add__(self, other: ReplayCounts) -> ReplayCounts:
        return ReplayCounts(
            num_tokens=self.num_tokens + other.num_tokens,
            num_agreed=self.num_agreed + other.num_agreed,
            num_rounds=self.num_rounds + other.num_rounds,
            num_accepted=self.num_accepted + other.num_accepted,
        )


def total(counts: Iterable[ReplayCounts]) -> ReplayCounts:
    """All of them together."""
    return sum(counts, ReplayCounts())


def count_replay(
    guesses: npt.NDArray[np.int64],
    said: npt.NDArray[np.int32],
    likeliest: npt.NDArray[np.int32],
    *,
    is_said: npt.NDArray[np.bool_],
    chain_tokens: int,
) -> ReplayCounts:
    """Count over the tokens that the target said; those it only read take no round.

    Each run of said tokens is a reply of its own: its first token comes with what was read before.

    Args:
        guesses: the drafter's likeliest token at each place, (tokens,).
        said: what stood there, (tokens,).
        likeliest: the target's likeliest, (tokens,).
        is_said: whether the target said it, (tokens,).
        chain_tokens: longest chain.
    """
    is_right = guesses == said
    edges = np.flatnonzero(np.diff(is_said, prepend=False, append=False))
    num_rounds = num_accepted = 0
    for first, end in zip(edges[::2], edges[1::2], strict=True):
        rounds, accepted = greedy_rounds(is_right[first:end].tolist(), chain_tokens)
        num_rounds += rounds
        num_accepted += accepted
    return ReplayCounts(
        num_tokens=int(is_said.sum()),
        num_agreed=int((guesses == likeliest)[is_said].sum()),
        num_rounds=num_rounds,
        num_accepted=num_accepted,
    )


def greedy_rounds(is_right: Sequence[bool], chain_tokens: int) -> tuple[int, int]:
    """Rounds that a reply takes, and tokens accepted in them.

    The first token comes with the prompt; each round then accepts what is right up to
    `chain_tokens` and adds a token of the target's.

    Args:
        is_right: of each token of the reply, whether the drafter would have drafted it.
        chain_tokens: longest chain.
    """
    rounds = accepted = 0
    at = 1
    while at < len(is_right):
        chain = 0
        while chain < chain_tokens and at + chain < len(is_right) and is_right[at + chain]:
            chain += 1
        rounds += 1
        accepted += chain
        at += chain + 1
    return rounds, accepted
