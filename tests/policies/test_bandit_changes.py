"""Changes of rewards: found, not imagined, and what a policy does about them."""

from __future__ import annotations

import random

import pytest

from paceline.policies.bandits import (
    NO_DRAFTS,
    Arm,
    DiscountedUCB,
    Outcome,
    PolicyContext,
    Steady,
    arm_set,
)
from paceline.policies.bandits.change import ChangeWatch

SHORT, LONG, BOTH = Arm("memory", 2), Arm("memory", 8), Arm("both", 8)
ARMS = arm_set([SHORT, LONG, BOTH])
HERE = PolicyContext.of(key="tenant:a", workload="w", num_requests=4, num_tokens=3000)
THRESHOLD = 10.0


def rewards(mean: float, seed: int, num: int) -> list[tuple[float, float]]:
    """Of full weight, with a third of noise."""
    rng = random.Random(seed)  # noqa: S311  test data
    return [(mean * rng.gauss(1.0, 0.3), 1.0) for _ in range(num)]


@pytest.mark.parametrize("after", [0.4, 2.0])
def test_a_jump_is_found_within_some_outcomes(after: float) -> None:
    """Less than half as much and twice as much, in at most 20 outcomes, in each of 50 runs."""
    for seed in range(50):
        watch = ChangeWatch(THRESHOLD)
        assert not any(watch.saw({0: each}) for each in rewards(1.5, seed, 40))
        assert any(watch.saw({0: each}) for each in rewards(1.5 * after, seed + 99, 20))


def test_nothing_is_found_where_nothing_changes() -> None:
    """In at most one of 50 runs of 400 outcomes of two arms; a slow drift is none, either."""
    num_found = 0
    for seed in range(50):
        watch = ChangeWatch(THRESHOLD)
        pairs = zip(rewards(1.5, seed, 400), rewards(2.5, seed + 99, 400), strict=True)
        num_found += any(watch.saw({0: a, 1: b}) for a, b in pairs)
    assert num_found <= 1
    watch = ChangeWatch(THRESHOLD)
    noisy = enumerate(rewards(1.0, 7, 400))
    assert not any(watch.saw({0: (each * (1.0 + i / 400), 1.0)}) for i, (each, _) in noisy)


def test_an_arm_that_was_not_seen_for_long_is_held_against_what_it_was() -> None:
    """Many outcomes of another arm in between change nothing of that; until sure it is rising."""
    watch = ChangeWatch(THRESHOLD)
    for each in rewards(1.0, 1, 3):
        watch.saw({0: each})
    for each in rewards(2.0, 2, 200):
        assert not watch.saw({1: each})
    assert watch.rising() == []
    num_seen = 0
    while not watch.saw({0: (4.0, 1.0)}):
        num_seen += 1
        assert watch.rising() == [0]
    assert num_seen <= 8
    assert watch.rising() == []


def test_a_single_outlier_is_no_change() -> None:
    """However far off."""
    watch = ChangeWatch(THRESHOLD)
    for each in rewards(1.0, 1, 20):
        watch.saw({0: each})
    assert not watch.saw({0: (1e6, 1.0)})
    assert not any(watch.saw({0: each}) for each in rewards(1.0, 5, 60))


def made() -> DiscountedUCB:
    return DiscountedUCB(ARMS, rng=random.Random(0), trial_share=0.0)  # noqa: S311  test data


def teach(bandit: DiscountedUCB, arm: Arm, rate: float, aside: dict[Arm, float]) -> None:
    """An outcome of full weight; rates are tokens a round of 0.03 s."""
    told = {other: Outcome(16 * each, 0.48, 16) for other, each in aside.items()}
    bandit.update(HERE, arm, Outcome(16 * rate, 0.48, 16), told)


def test_luck_that_two_arms_shared_is_taken_out() -> None:
    """A long draft is seen in unlucky rounds only, in which the shorter one was as bad.

    It was better than that by a half each time, and is taken for better in all rounds.
    """
    bandit = made()
    for _ in range(3):
        teach(bandit, LONG, 1.8, {SHORT: 1.2, NO_DRAFTS: 1.0})
    for _ in range(30):
        teach(bandit, SHORT, 2.4, {NO_DRAFTS: 1.0})
    assert bandit.choose(HERE) == LONG
    assert bandit.loss(HERE, LONG) < 0.1
    alone = made()
    for _ in range(3):
        teach(alone, LONG, 1.8, {})
    for _ in range(30):
        teach(alone, SHORT, 2.4, {NO_DRAFTS: 1.0})
    assert alone.choose(HERE) == SHORT
    assert alone.loss(HERE, LONG) > 0.2


def test_after_a_change_a_context_begins_anew() -> None:
    """Arms that were bad are pulled again, in turns, though the key's other contexts know them."""
    policy = Steady(made(), burn_in=2.0)
    rates = {NO_DRAFTS: 1.0, SHORT: 2.0, LONG: 1.2, BOTH: 1.1}
    pulled: list[Arm] = []
    for number in range(160):
        if number == 80:
            rates = {NO_DRAFTS: 1.0, SHORT: 0.7, LONG: 0.8, BOTH: 3.0}
        arm = policy.pull(HERE)
        pulled.append(arm)
        policy.update(HERE, arm, Outcome(16 * rates[arm], 0.48, 16))
    assert pulled[60:80] == [SHORT] * 20
    assert policy._bandit.num_changes(HERE) == 1
    first = next(i for i in range(80, 160) if pulled[i] != SHORT)
    assert first <= 92
    assert set(pulled[first : first + 3]) == {NO_DRAFTS, LONG, BOTH}
    assert pulled[-20:].count(BOTH) == 20
