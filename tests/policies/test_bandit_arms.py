"""What policies choose from, and where: arms, what they reveal, and buckets."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.errors import ConfigError
from paceline.policies.bandits import (
    NO_DRAFTS,
    Arm,
    ThompsonSampling,
    arm_set,
    batch_bucket,
    context_bucket,
    default_arms,
    shorter_draft,
)

ARMS = default_arms(has_model=True, caps=(2, 8))
SHORT, LONG, BOTH = Arm("memory", 2), Arm("memory", 8), Arm("both", 8)


def test_no_drafts_is_always_an_arm() -> None:
    """It is first, however the set is given, and nothing is in it twice."""
    assert arm_set([LONG, SHORT, LONG]) == (NO_DRAFTS, LONG, SHORT)
    assert arm_set([]) == (NO_DRAFTS,)
    assert default_arms(caps=(4,)) == (NO_DRAFTS, Arm("memory", 4))
    policy = ThompsonSampling([LONG], rng=random.Random(0))  # noqa: S311  test data
    assert policy.arms == (NO_DRAFTS, LONG)


def test_arms_are_what_they_say() -> None:
    """Names lead back to arms; what cannot be is refused with its value."""
    for arm in ARMS:
        assert Arm.parse(arm.name) == arm
    assert (BOTH.name, NO_DRAFTS.name) == ("both-8", "none")
    assert BOTH.has_model
    assert not LONG.has_model
    with pytest.raises(ConfigError, match="'memory' has max_tokens 0; give 1 to 1024"):
        Arm("memory", 0)
    with pytest.raises(ConfigError, match="'none' has max_tokens 4; give 0 to 0"):
        Arm("none", 4)
    with pytest.raises(ConfigError, match="sources 'guess'"):
        Arm("guess", 4)  # type: ignore[arg-type]
    for name in ("memory-x", "none-3", "guess-3", "memory"):
        with pytest.raises(ConfigError):
            Arm.parse(name)


def test_a_long_draft_reveals_shorter_ones_of_its_sources() -> None:
    """And no drafts, but neither a longer one nor another source."""
    assert LONG.reveals(SHORT)
    assert LONG.reveals(NO_DRAFTS)
    assert BOTH.reveals(Arm("both", 2))
    assert not SHORT.reveals(LONG)
    assert not BOTH.reveals(SHORT)


@given(st.integers(-5, 2**40))
def test_buckets_are_powers_of_two_below(number: int) -> None:
    """Of batch and context, within their bounds."""
    for bucket, least, most in ((batch_bucket, 1, 256), (context_bucket, 512, 131_072)):
        found = bucket(number)
        assert least <= found <= most
        assert found.bit_count() == 1
        if least <= number < 2 * most:
            assert found <= number < 2 * found


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 16))
def test_a_shorter_draft_commits_what_the_long_one_did(
    num_drafted: int, num_refused: int, cap: int
) -> None:
    """In as many rounds as its cap makes necessary, with no more drafted than was known."""
    num_accepted = max(num_drafted - num_refused, 0)
    num_rounds, drafted = shorter_draft(num_drafted, num_accepted, cap)
    assert (num_rounds - 1) * (cap + 1) < num_accepted + 1 <= num_rounds * (cap + 1)
    assert 0 <= drafted <= min(num_rounds * cap, num_drafted)
    if cap >= num_drafted:
        assert (num_rounds, drafted) == (1, num_drafted)
