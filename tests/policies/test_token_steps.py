"""What passes take by how many drafted tokens they verify, where time goes up in steps."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from paceline.policies.round_cost import LEAST_PASSES, RoundCost
from paceline.policies.token_steps import MOST_REQUESTS, MOST_TOKENS

STEP = 3
"""Tokens that take no longer than one."""


def stepped(num_requests: int, num_drafted: int, num_context: float = 0.0) -> float:
    """30 ms, and 12 for each three tokens begun after the first three."""
    num_steps = (num_requests + num_drafted - 1) // STEP
    return 0.03 + 0.012 * num_steps + 1e-6 * num_context


def taught(drafted: Iterable[int], *, num_requests: int = 1, speed: float = 1.0) -> RoundCost:
    cost = RoundCost()
    teach(cost, drafted, num_requests=num_requests, speed=speed)
    return cost


def teach(
    cost: RoundCost, drafted: Iterable[int], *, num_requests: int = 1, speed: float = 1.0
) -> None:
    for num in drafted:
        seconds = stepped(num_requests, num) / speed
        cost.learn(num_requests, num_requests + num, seconds)


def in_turns(num_passes: int, most: int = 8) -> list[int]:
    """Drafted tokens of passes, each number as often."""
    return [7 * i % (most + 1) for i in range(num_passes)]


@pytest.mark.parametrize("num_requests", [1, 2, 5])
def test_steps_are_found(num_requests: int) -> None:
    """Each number of tokens takes what its passes took, where a line is off by a fifth of it."""
    cost = taught(in_turns(900), num_requests=num_requests)
    ladder = cost.ladder(num_requests)
    line = [cost.seconds(num_requests, num_requests + n) for n in range(9)]
    truth = [stepped(num_requests, n) for n in range(9)]
    found = [ladder.at(n) for n in range(9)]
    assert found == pytest.approx(truth, rel=0.03)
    assert np.abs(np.array(line) - truth).max() > 2 * np.abs(np.array(found) - truth).max()


def test_what_was_not_seen_goes_on_as_the_line_does() -> None:
    """Beyond what was drafted so far, and beyond the table's end."""
    cost = taught(in_turns(900, most=5))
    ladder = cost.ladder(1)
    assert ladder.at(20) == pytest.approx(cost.seconds(1, 21))
    last = ladder.at(MOST_TOKENS)
    assert ladder.at(MOST_TOKENS + 10) == pytest.approx(last + 10 * cost.token_seconds)


def test_fewer_tokens_take_no_longer_than_more_that_are_known() -> None:
    """Two were often drafted and never one: one takes no longer, whatever the line says."""
    cost = taught([0, 2, 3] * 300)
    assert cost.seconds(1, 2) > 1.03 * stepped(1, 1)
    assert cost.ladder(1).at(1) == pytest.approx(stepped(1, 1), rel=0.03)


def test_a_faster_machine_is_faster_for_sizes_that_were_not_seen_since() -> None:
    """Twice as fast, seen with few tokens alone: many of them are expected to be as well."""
    cost = taught(in_turns(900))
    teach(cost, [0, 1, 2] * 60, speed=2.0)
    ladder = cost.ladder(1)
    assert ladder.at(7) == pytest.approx(stepped(1, 7) / 2, rel=0.25)
    assert ladder.at(2) < ladder.at(7)


def test_what_was_seen_long_ago_is_left_to_the_line() -> None:
    """A size that was never seen again for thousands of passes is tried again."""
    cost = taught([*in_turns(300), *([0, 1, 2] * 1500)])
    assert cost.token_seconds < 0.001
    assert cost.ladder(1).at(5) == pytest.approx(cost.seconds(1, 6), rel=0.02)


def test_contexts_count_beside() -> None:
    """A longer context than those of a size's passes takes what the line says for it."""
    cost = RoundCost()
    for i, num in enumerate(in_turns(900)):
        context = 100.0 * (i % 13)
        cost.learn(1, 1 + num, stepped(1, num, context), num_context=context)
    assert cost.ladder(1, 2_000.0).at(1) == pytest.approx(stepped(1, 1, 2_000.0), rel=0.03)


def test_nothing_is_said_before_enough_was_seen() -> None:
    """Nor of more requests than the table has: there the line is all."""
    unknown = taught([0] * LEAST_PASSES).ladder(1)
    assert not unknown.is_known
    assert (unknown.at(0), unknown.at(5), unknown.beside(1.0).at(3)) == (0.0, 0.0, 0.0)
    many = MOST_REQUESTS + 1
    cost = taught(in_turns(90), num_requests=many)
    ladder = cost.ladder(many)
    assert [ladder.at(n) for n in range(9)] == pytest.approx(
        [cost.seconds(many, many + n) for n in range(9)]
    )


def test_passes_that_read_prompts_say_nothing_of_steps() -> None:
    """Their time is the prompts'."""
    cost = taught(in_turns(900))
    before = [cost.ladder(1).at(n) - cost.seconds(1, 1 + n) for n in range(9)]
    for i in range(40):
        cost.learn(1, 2, stepped(1, 1) + 0.02 + 0.001 * (i % 3), num_prompt=20 + 10 * (i % 3))
    after = [cost.ladder(1).at(n) - cost.seconds(1, 1 + n) for n in range(9)]
    assert np.abs(np.array(after) - before).max() < 0.01


def test_drafting_beside_adds_to_every_pass() -> None:
    """So much more time, however many tokens are verified."""
    ladder = taught(in_turns(900)).ladder(1)
    later = ladder.beside(0.5)
    assert [later.at(n) - ladder.at(n) for n in (0, 3, 100)] == pytest.approx([0.5] * 3)
