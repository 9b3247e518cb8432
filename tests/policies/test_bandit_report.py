"""What policies have learned, as a person is shown it."""

from __future__ import annotations

import random

import pytest

from paceline.policies.bandits import (
    NO_DRAFTS,
    Arm,
    Exp3S,
    Outcome,
    PolicyContext,
    Steady,
    decode_state,
    default_policy,
)
from paceline.policies.bandits.report import ContextReport, context_reports

HERE = PolicyContext("tenant:a", "sql", 4, 512)
ARMS = (NO_DRAFTS, Arm("memory", 4), Arm("memory", 8))
RATES = {"none": 50.0, "memory-4": 100.0, "memory-8": 75.0}


def taught_by(seed: int, num_rounds: int) -> Steady:
    rng = random.Random(seed)  # noqa: S311  test data
    policy = default_policy(ARMS, rng=rng)
    for _ in range(num_rounds):
        for arm in policy.arms:
            tokens = RATES[arm.name] * rng.uniform(0.9, 1.1)
            policy.update(HERE, arm, Outcome(tokens, 1.0, 16))
    return policy


def taught(num_rounds: int, *, seed: int = 0) -> ContextReport:
    """A policy's report after so many rounds of each arm, noise of a tenth."""
    policy = taught_by(seed, num_rounds)
    (report,) = context_reports([decode_state(policy.state())])
    return report


def test_arms_come_best_first_with_what_is_not_known_of_them() -> None:
    """Means are in parts of the rate without drafts; more evidence, less doubt."""
    much, little = taught(200), taught(4)
    assert (much.key, much.workload, much.batch_bucket) == ("tenant:a", "sql", 4)
    assert [arm.name for arm in much.arms] == ["memory-4", "memory-8", "none"]
    rewards = [arm.reward for arm in much.arms]
    assert rewards == pytest.approx([2.0, 1.5, 1.0], rel=0.1)
    assert all(0 < arm.deviation < 0.2 for arm in much.arms)
    doubt = {arm.name: arm.deviation for arm in little.arms}
    assert all(arm.deviation < doubt[arm.name] for arm in much.arms)


def test_replicas_are_added_up_and_other_kinds_left_out() -> None:
    """Two replicas' evidence on one context is one report; a policy without means has none."""
    policies = [taught_by(seed, 20) for seed in range(2)]
    states = [decode_state(policy.state()) for policy in policies]
    (both,), (one,) = context_reports(states), context_reports(states[:1])
    assert both.num_updates == 2 * one.num_updates > 0
    for arm, alone in zip(both.arms, one.arms, strict=True):
        assert arm.weight == pytest.approx(2 * alone.weight)
    other = Exp3S(ARMS, rng=random.Random(0))  # noqa: S311  test data
    other.update(HERE, NO_DRAFTS, Outcome(50.0, 1.0, 16))
    assert context_reports([decode_state(other.state())]) == []
