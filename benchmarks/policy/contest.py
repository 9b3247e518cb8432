"""Playing policies on scenarios, and what they are measured by."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import mean, median
from time import perf_counter_ns
from typing import Final

import numpy as np
import numpy.typing as npt

from paceline.benchmarks.policy.scenario import Scenario, Seconds
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

Shares = npt.NDArray[np.float64]
Maker = Callable[[tuple[Arm, ...], random.Random], Policy]

ENGINE: Final = "engine"
"""The default as engines run it: it is always told aside, of memory beside a model's drafts too."""
CONTESTANTS: Final[dict[str, Maker]] = {
    "default": lambda arms, rng: default_policy(arms, rng=rng),
    ENGINE: lambda arms, rng: default_policy(arms, rng=rng, is_told_aside=True),
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
    "exp3-paper": lambda arms, rng: Steady(
        Exp3S(arms, rng=rng, explore=0.3, learning_rate=0.3 / len(arms)), burn_in=0.0
    ),
    "linear": lambda arms, rng: Steady(DiscountedLinUCB(arms, rng=rng)),
    "linear-fast": lambda arms, rng: Steady(DiscountedLinUCB(arms, rng=rng, discount=0.95)),
}
CHUNK_ROUNDS: Final = 16.0
"""Rounds of a request between two pulls."""
LEAST_LEFT: Final = 1e-9
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
        num_switches: times that another arm followed in the same context, of a hundred pulls.
    """

    share_fixed: float
    share_segments: float
    share_none: float
    regret_fixed: float
    regret_segments: float
    back: tuple[int, ...]
    num_switches: float


@dataclass(frozen=True, slots=True)
class Played:
    """What a policy pulled.

    Attributes:
        shares: part of each request that was answered with each arm, (requests, arms).
        num_switches: times that another arm followed in the same context.
        num_pulls: pulls, one for `CHUNK_ROUNDS` rounds of a request or for its rest.
    """

    shares: Shares
    num_switches: int
    num_pulls: int


def play(
    policy: Policy, scenario: Scenario, *, in_flight: int = 1, with_aside: bool = True
) -> Played:
    """Answer all requests, `CHUNK_ROUNDS` rounds at a time, each time with what is pulled.

    A request's rounds with an arm are taken to be alike: where arms change, so much of it is done
    at the rate of one, and so much at that of the other.

    Args:
        policy: has the scenario's arms.
        scenario: what is played.
        in_flight: requests that are answered at once: all are pulled for, then all are learned
            from.
        with_aside: whether it is told what its rounds reveal of other arms.
    """
    numbers = {arm: number for number, arm in enumerate(scenario.arms)}
    shares = np.zeros((len(scenario.requests), len(numbers)))
    last: dict[PolicyContext, Arm] = {}
    num_switches = num_pulls = 0
    waiting = iter(range(len(scenario.requests)))
    active = [[i, 1.0] for i in islice(waiting, in_flight)]
    while active:
        arms = [policy.pull(scenario.requests[int(i)].context) for i, _ in active]
        for place, arm in zip(active, arms, strict=True):
            request, number = scenario.requests[int(place[0])], numbers[arm]
            num_pulls += 1
            num_switches += last.get(request.context, arm) != arm
            last[request.context] = arm
            outcome = request.outcomes[number]
            part = min(place[1], CHUNK_ROUNDS / outcome.num_rounds)
            place[1] -= part
            shares[int(place[0]), number] += part
            aside = request.aside.get(arm, {}) if with_aside else {}
            told = {other: _part_of(seen, part) for other, seen in aside.items()}
            policy.update(request.context, arm, _part_of(outcome, part), told)
        active = [place for place in active if place[1] > LEAST_LEFT]
        active += [[i, 1.0] for i in islice(waiting, in_flight - len(active))]
    return Played(shares, num_switches, num_pulls)


def _part_of(outcome: Outcome, part: float) -> Outcome:
    return Outcome(outcome.num_tokens * part, outcome.seconds * part, outcome.num_rounds * part)


def score(scenario: Scenario, played: Played) -> Score:
    """What was pulled was worth."""
    expected = scenario.seconds_a_token()
    tokens = np.array([each.outcomes[0].num_tokens for each in scenario.requests])
    seconds = expected * tokens[:, None]
    taken, none = float((seconds * played.shares).sum()), float(seconds[:, 0].sum())
    fixed, by_segment = float(seconds.sum(axis=0).min()), float(seconds.min(axis=1).sum())
    return Score(
        share_fixed=fixed / taken,
        share_segments=by_segment / taken,
        share_none=none / taken,
        regret_fixed=100.0 * (taken - fixed) / none,
        regret_segments=100.0 * (taken - by_segment) / none,
        back=tuple(_back((expected * played.shares).sum(axis=1), expected.min(axis=1), scenario)),
        num_switches=100.0 * played.num_switches / played.num_pulls,
    )


def _back(taken: Seconds, best: Seconds, scenario: Scenario) -> Iterable[int]:
    """After each change: the first request from which on the window's rate is good."""
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
    as_engine: bool = False,
) -> list[Score]:
    """A fresh policy on each scenario; scenario i is played with seed i.

    Args:
        make: makes it.
        scenarios: what is played.
        in_flight: see `play`, as the next.
        with_aside: as there.
        as_engine: told as engines tell it, which is always aside.
    """
    scores = []
    for seed, scenario in enumerate(scenarios):
        policy = make(scenario.arms, random.Random(seed))  # noqa: S311  not a secret
        told = scenario.told_as_by_engines() if as_engine else scenario
        played = play(policy, told, in_flight=in_flight, with_aside=with_aside or as_engine)
        scores.append(score(scenario, played))
    return scores
