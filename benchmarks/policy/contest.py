"""Playing policies on scenarios, and what they are measured by."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, median
from time import perf_counter_ns
from typing import Final

import numpy as np
import numpy.typing as npt

from paceline.benchmarks.policy.scenario import Scenario
from paceline.policies.bandits import (
    Arm,
    DiscountedLinUCB,
    DiscountedUCB,
    Exp3S,
    Outcome,
    Policy,
    PolicyContext,
    Steady,
    ThompsonSampling,
    default_policy,
)

Maker = Callable[[tuple[Arm, ...], random.Random], Policy]

CONTESTANTS: Final[dict[str, Maker]] = {
    "default": lambda arms, rng: default_policy(arms, rng=rng),
    "ucb-no-change": lambda arms, rng: Steady(
        DiscountedUCB(arms, rng=rng, change_threshold=math.inf)
    ),
    "ucb-classic": lambda arms, rng: Steady(
        DiscountedUCB(
            arms, rng=rng, explore=1.0, discount=0.95, change_threshold=math.inf, trial_share=0.0
        )
    ),
    "thompson": lambda arms, rng: Steady(ThompsonSampling(arms, rng=rng)),
    "thompson-no-change": lambda arms, rng: Steady(
        ThompsonSampling(arms, rng=rng, change_threshold=math.inf)
    ),
    "thompson-classic": lambda arms, rng: Steady(
        ThompsonSampling(
            arms, rng=rng, explore=1.0, discount=0.95, change_threshold=math.inf, trial_share=0.0
        )
    ),
    "exp3": lambda arms, rng: Steady(Exp3S(arms, rng=rng), burn_in=0.0),
    "exp3-bold": lambda arms, rng: Steady(Exp3S(arms, rng=rng, explore=0.3), burn_in=0.0),
    "linear": lambda arms, rng: Steady(DiscountedLinUCB(arms, rng=rng)),
    "linear-fast": lambda arms, rng: Steady(DiscountedLinUCB(arms, rng=rng, discount=0.95)),
}
GOOD_SHARE: Final = 0.95
WINDOW: Final = 20
"""Requests over which a policy must be good to count as back."""


@dataclass(frozen=True, slots=True)
class Score:
    """How one policy did on one scenario with one seed.

    Attributes:
        share_fixed: of the rate of the best arm for the whole run, in hindsight.
        share_segments: of the rate of the arms that are best in each segment and context.
        share_none: times the rate without drafts.
        regret_fixed: seconds lost to the best fixed arm, in per cent of those without drafts.
        regret_segments: to the best arm of each segment and context.
        back: requests until it is back at `GOOD_SHARE` of the best, one for each change; as many
            as the segment has where it is never.
        num_switches: times that an arm followed another in the same context, a hundred requests.
    """

    share_fixed: float
    share_segments: float
    share_none: float
    regret_fixed: float
    regret_segments: float
    back: tuple[int, ...]
    num_switches: float


def play(
    policy: Policy, scenario: Scenario, *, in_flight: int = 1, with_aside: bool = True
) -> npt.NDArray[np.int64]:
    """Number of the arm that each request was given, (requests,).

    Args:
        policy: has the scenario's arms.
        scenario: what is played.
        in_flight: requests that are pulled for before any of them is learned from.
        with_aside: whether it is told what its rounds reveal of other arms.
    """
    numbers = {arm: number for number, arm in enumerate(scenario.arms)}
    pulled = np.empty(len(scenario.requests), np.int64)
    for begin in range(0, len(scenario.requests), in_flight):
        group = scenario.requests[begin : begin + in_flight]
        arms = [policy.pull(request.context) for request in group]
        for i, (request, arm) in enumerate(zip(group, arms, strict=True)):
            number = pulled[begin + i] = numbers[arm]
            aside = request.aside.get(arm) if with_aside else None
            policy.update(request.context, arm, request.outcomes[number], aside)
    return pulled


def score(scenario: Scenario, pulled: npt.NDArray[np.int64]) -> Score:
    """What those arms were worth."""
    expected = scenario.seconds_a_token()
    rows = np.arange(len(pulled))
    tokens = np.array([each.outcomes[0].num_tokens for each in scenario.requests])
    seconds = expected * tokens[:, None]
    taken, none = float(seconds[rows, pulled].sum()), float(seconds[:, 0].sum())
    fixed, by_segment = float(seconds.sum(axis=0).min()), float(seconds.min(axis=1).sum())
    return Score(
        share_fixed=fixed / taken,
        share_segments=by_segment / taken,
        share_none=none / taken,
        regret_fixed=100.0 * (taken - fixed) / none,
        regret_segments=100.0 * (taken - by_segment) / none,
        back=tuple(_back(expected, pulled, scenario)),
        num_switches=_num_switches(scenario, pulled),
    )


def _back(
    expected: npt.NDArray[np.float64], pulled: npt.NDArray[np.int64], scenario: Scenario
) -> Iterable[int]:
    """After each change: the first request from which on the window's rate is good."""
    taken = expected[np.arange(len(pulled)), pulled]
    best = expected.min(axis=1)
    for begin, end in scenario.bounds()[1:]:
        last = max(end - WINDOW, begin)
        for first in range(begin, last + 1):
            within = slice(first, min(first + WINDOW, end))
            # the change is over at the first good request, not at the window's end
            if taken[first] * GOOD_SHARE <= best[first] and (
                best[within].sum() >= GOOD_SHARE * taken[within].sum()
            ):
                yield first - begin
                break
        else:
            yield end - begin


def _num_switches(scenario: Scenario, pulled: npt.NDArray[np.int64]) -> float:
    last: dict[PolicyContext, int] = {}
    num_switches = 0
    for request, arm in zip(scenario.requests, pulled.tolist(), strict=True):
        num_switches += last.get(request.context, arm) != arm
        last[request.context] = arm
    return 100.0 * num_switches / len(pulled)


def round_us(
    make: Maker, arms: tuple[Arm, ...], *, num_contexts: int, batch: int = 32, rounds: int = 2000
) -> tuple[float, float]:
    """Median and mean microseconds of a round's pulls and updates, one of each a request."""
    policy = make(arms, random.Random(1))  # noqa: S311  not a secret
    contexts = [
        PolicyContext.of(key="tenant:a", workload=f"w{i % num_contexts}", num_requests=batch)
        for i in range(batch)
    ]
    outcomes = [Outcome(1.0 + i % 3, 0.03 + 0.001 * i) for i in range(7)]
    taken = []
    for number in range(rounds):
        outcome = outcomes[number % len(outcomes)]
        began = perf_counter_ns()
        pulled = [policy.pull(context) for context in contexts]
        for context, arm in zip(contexts, pulled, strict=True):
            policy.update(context, arm, outcome)
        taken.append((perf_counter_ns() - began) / 1000.0)
    return median(taken), mean(taken)


def contest(
    make: Maker,
    scenarios: Sequence[Scenario],
    *,
    in_flight: int = 1,
    with_aside: bool = True,
) -> list[Score]:
    """A fresh policy on each scenario; scenario i is played with seed i."""
    scores = []
    for seed, scenario in enumerate(scenarios):
        policy = make(scenario.arms, random.Random(seed))  # noqa: S311  not a secret
        pulled = play(policy, scenario, in_flight=in_flight, with_aside=with_aside)
        scores.append(score(scenario, pulled))
    return scores
