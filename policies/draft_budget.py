"""What is worth its time in a round: whatever gives the batch the most tokens a second.

A round yields a token for each request and those of the drafts that are accepted, and takes the
time of the target's pass and of the drafting. Spending draft tokens over the whole batch where
their chance is worth their time is TETRIS (arXiv 2502.15197), tokens a second as what to maximise
TurboSpec's goodput (arXiv 2406.14066).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

LEAST_SURPLUS: Final = 1e-12
"""Tokens that are not told from none."""


def worth_their_time(
    gains: Sequence[float],
    seconds: Sequence[float],
    *,
    fixed_seconds: float,
    base_tokens: float,
    base_seconds: float,
) -> list[int]:
    """The additions to a round that make it yield the most tokens a second, in rising order.

    Each step takes what is worth more than the time it takes at the rate so far, which can only
    raise the rate (Dinkelbach 1967). At most as many steps as there are additions, O(n) each.

    Args:
        gains: tokens that each addition is expected to bring.
        seconds: what each of them takes.
        fixed_seconds: what any of them takes, once for all that are chosen.
        base_tokens: tokens of the round without them.
        base_seconds: its time; 0 if unknown, then everything that brings something is chosen.
    """
    chosen: list[int] = []
    rate = base_tokens / base_seconds if base_seconds > 0 else 0.0
    while True:
        picked = [
            i for i, gain in enumerate(gains)
            if gain > rate * seconds[i]
        ]  # fmt: skip
        gained = sum(gains[i] for i in picked)
        taken = fixed_seconds + sum(seconds[i] for i in picked)
        if gained - rate * taken <= LEAST_SURPLUS:
            return chosen
        if picked == chosen or base_seconds <= 0:
            return picked
        chosen, rate = picked, (base_tokens + gained) / (base_seconds + taken)
