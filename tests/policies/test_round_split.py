"""A round's seconds, split into what it would have taken anyhow and what its drafts took."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from paceline.policies.round_split import FIRST_INTERVAL, LAST_INTERVAL, RoundSplit, RoundTime

BASE, STEP, TOKEN = 0.02, 0.03, 0.001
"""Seconds of a round of four: without drafts, for the first drafted token, and for each."""


def seconds(num_drafted: int) -> float:
    return BASE + (STEP if num_drafted else 0.0) + TOKEN * num_drafted


def taught(*, noise: float = 0.0, slower: float = 1.0) -> RoundSplit:
    """Rounds of four requests, one of ten without drafts; from half of them on all are slower."""
    rng, split = np.random.default_rng(0), RoundSplit()
    for i in range(400):
        num_drafted = 0 if i % 10 == 0 else 4 + 4 * (i % 7)
        pace = (slower if i > 200 else 1.0) * float(rng.lognormal(0.0, noise))
        split.learn(RoundTime(4, 4 + num_drafted, pace * seconds(num_drafted)))
    return split


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_round_is_split_as_it_was_made(noise: float) -> None:
    """Also where the first drafted token costs more than all others."""
    split = taught(noise=noise)
    for num_drafted in (4, 16, 28):
        found = split.learn(RoundTime(4, 4 + num_drafted, seconds(num_drafted)))
        assert found is not None
        assert found.base_seconds == pytest.approx(BASE, rel=0.1)
        total = found.base_seconds + found.draft_seconds
        assert total == pytest.approx(seconds(num_drafted))


def test_without_drafts_a_round_is_its_own() -> None:
    """Nothing is taken for drafts where there were none, however long the round took."""
    found = taught().learn(RoundTime(4, 4, 3 * BASE))
    assert found is not None
    assert (found.base_seconds, found.draft_seconds) == (3 * BASE, 0.0)


def test_a_slower_machine_makes_no_draft_dearer() -> None:
    """What drafts add is a part of the round, learned against the rounds around it."""
    for slower in (0.5, 2.0):
        added = taught(slower=slower).added(4, 4.0)
        assert added == pytest.approx(seconds(16) / BASE - 1.0, rel=0.1)


def test_nothing_is_said_before_rounds_without_drafts_are_known() -> None:
    """They are asked for at once, and then the load's rounds are split."""
    split, found = RoundSplit(), []
    for _ in range(20):
        num_drafted = 0 if split.wanted(4) is False else 8
        found.append(split.learn(RoundTime(4, 4 + num_drafted, seconds(num_drafted))))
    assert found[0] is None
    assert found[-1] is not None
    assert split.added(4, 2.0) == pytest.approx(seconds(8) / BASE - 1.0)
    assert split.added(64, 2.0) == 0.0  # another load


def test_rounds_of_the_other_kind_are_asked_for_ever_less() -> None:
    """Where they bring nothing new: in the end one of 1,024, with drafts as without."""
    for is_drafted in (True, False):
        split, asked = taught(), []
        for i in range(6 * LAST_INTERVAL):
            wanted = split.wanted(4)
            if wanted is not None:
                assert wanted is not is_drafted
                asked.append(i)
            num_drafted = 8 if (is_drafted if wanted is None else wanted) else 0
            split.learn(RoundTime(4, 4 + num_drafted, seconds(num_drafted)))
        between = [b - a for a, b in pairwise(asked)]
        assert FIRST_INTERVAL <= between[0] <= between[-1] <= LAST_INTERVAL + 1
        assert between[-1] >= LAST_INTERVAL
        assert len(asked) < 16


def test_rounds_that_are_asked_for_in_vain_do_not_follow_each_other() -> None:
    """Where no time can be measured, as while prompts are read, hardly a round is given up."""
    split = RoundSplit()
    for _ in range(FIRST_INTERVAL):
        split.learn(RoundTime(4, 12, seconds(8)))
    assert [split.wanted(4) for _ in range(50)].count(False) == 1


@pytest.mark.parametrize("time", [0.0, -1.0, float("nan"), float("inf")])
def test_what_cannot_be_is_not_learned(time: float) -> None:
    """Neither times that are none nor rounds of nobody."""
    split = taught()
    before = split.added(4, 4.0)
    assert split.learn(RoundTime(4, 20, time)) is None
    assert split.learn(RoundTime(0, 0, 0.1)) is None
    assert split.added(4, 4.0) == before
