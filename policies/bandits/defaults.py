"""The policy that is used where nobody names another."""

from __future__ import annotations

import random
from collections.abc import Iterable

from paceline.policies.bandits.arms import Arm, default_arms
from paceline.policies.bandits.gaussian import DiscountedUCB
from paceline.policies.bandits.steady import Steady


def default_policy(
    arms: Iterable[Arm] | None = None,
    *,
    rng: random.Random,
    drafter: str = "",
    is_told_aside: bool = False,
) -> Steady:
    """The default: see docs/bandits.md for what chose it.

    Args:
        arms: what to choose from; None for `default_arms`, with the model where there is a drafter.
        rng: source of its draws.
        drafter: id of the model that drafts, "" without one.
        is_told_aside: see `Steady`.
    """
    chosen = default_arms(has_model=bool(drafter)) if arms is None else arms
    if is_told_aside:  # its way of trying is to look at the arm that tells of all others
        bandit = DiscountedUCB(chosen, rng=rng, drafter=drafter, trial_share=0.0)
        return Steady(bandit, is_told_aside=True)
    return Steady(DiscountedUCB(chosen, rng=rng, drafter=drafter))
