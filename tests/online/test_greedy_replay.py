"""Rounds are counted over what the target said, as drafting would take them."""

from __future__ import annotations

import numpy as np
import pytest

from paceline.online.greedy_replay import ReplayCounts, count_replay, greedy_rounds, total


@pytest.mark.parametrize(
    ("is_right", "chain_tokens", "expected"),
    [
        ([], 4, (0, 0)),
        ([True], 4, (0, 0)),  # the first token comes with the prompt
        ([False, False, False], 4, (2, 0)),
        ([False, True, True], 4, (1, 2)),
        ([False, True, True, True, True, True], 4, (1, 4)),
        ([False, True, True, True], 2, (1, 2)),
        ([True, True, False, True, False, True, True], 4, (3, 4)),
    ],
)
def test_rounds_of_a_reply(
    is_right: list[bool], chain_tokens: int, expected: tuple[int, int]
) -> None:
    """Each accepts what is right, up to the longest chain, and adds one of the target's."""
    assert greedy_rounds(is_right, chain_tokens) == expected


def test_only_what_was_said_takes_rounds() -> None:
    """What was read is neither drafted nor counted, and each reply begins anew behind it."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        num = int(rng.integers(1, 40))
        guesses, said, likeliest = (rng.integers(0, 2, num) for _ in range(3))
        is_said = rng.random(num) < 0.6
        counts = count_replay(
            guesses,
            said.astype(np.int32),
            likeliest.astype(np.int32),
            is_said=is_said,
            chain_tokens=3,
        )
        rounds = accepted = at = 0
        while at < num:  # token by token
            if not is_said[at] or at == 0 or not is_said[at - 1]:
                at += 1
                continue
            chain = 0
            while at < num and is_said[at] and chain < 3 and guesses[at] == said[at]:
                chain, at = chain + 1, at + 1
            rounds += 1
            accepted += chain
            at += at < num and bool(is_said[at])  # the target's own
        assert (counts.num_rounds, counts.num_accepted) == (rounds, accepted)
        assert counts.num_tokens == is_said.sum()
        assert counts.num_agreed == ((guesses == likeliest) & is_said).sum()


def test_counts_add_up() -> None:
    """Lengths and shares are of the sums; nothing of nothing is 0."""
    one = ReplayCounts(num_tokens=10, num_agreed=5, num_rounds=4, num_accepted=6)
    two = ReplayCounts(num_tokens=30, num_agreed=5, num_rounds=16, num_accepted=4)
    both = total([one, two])
    assert (both.accepted_length, both.agreement) == (0.5, 0.25)
    assert (total([]).accepted_length, total([]).agreement) == (0.0, 0.0)
