"""Rewards made up so that what is best is known, and changes in a known way.

A token of a draft is accepted with a chance that is drawn for each request about that of its kind;
a round takes 1 and so much for each drafted token, and a pass for the model where it drafts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from paceline.benchmarks.policy.scenario import Request, Scenario
from paceline.policies.bandits import Arm, Outcome, PolicyContext, arm_set, shorter_draft

ARMS: Final = arm_set(
    [
        *(Arm("memory", cap) for cap in (2, 4, 8, 16)),
        *(Arm("both", cap) for cap in (4, 8)),
    ]
)
REQUEST_TOKENS: Final = 80
JITTER: Final = 12.0
"""Of requests of a kind: a Beta distribution that is as narrow as that many trials make it."""
PASS_SECONDS: Final = 0.25
"""What the model's drafting takes, in rounds without drafts."""
ROUND_SECONDS: Final = 0.03
MOST_CHANCE: Final = 0.999
EXPECTED_REQUESTS: Final = 4000

Chances = npt.NDArray[np.float64]
Runs = npt.NDArray[np.int64]
"""Accepted tokens of each round."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What requests are like.

    Attributes:
        memory: chance that a token drafted from memory is accepted.
        model: chance that the model has it right where memory has not.
        token: what a drafted token takes, in rounds without drafts.
    """

    memory: float
    model: float
    token: float


REPEATING: Final = Kind(memory=0.93, model=0.3, token=0.015)
QUOTING: Final = Kind(memory=0.7, model=0.2, token=0.03)
NEW: Final = Kind(memory=0.25, model=0.6, token=0.03)
FREE_TEXT: Final = Kind(memory=0.2, model=0.1, token=0.03)
LOADED: Final = Kind(memory=0.6, model=0.3, token=0.7)


@cache
def seconds_a_token(kind: Kind, arm: Arm) -> float:
    """What a token takes on average over many requests of a kind."""
    rng = np.random.default_rng(0)
    memory, model = _chances(rng, kind, EXPECTED_REQUESTS)
    missed = (1.0 - memory) * ((1.0 - model) if arm.has_model else 1.0)
    chance = np.clip(1.0 - missed, 0.0, MOST_CHANCE)
    tokens = (1.0 - chance ** (arm.max_tokens + 1)) / (1.0 - chance)
    return round_seconds(kind, arm) * float((1.0 / tokens).mean())


def round_seconds(kind: Kind, arm: Arm) -> float:
    """What a round takes."""
    parts = 1.0 + kind.token * arm.max_tokens + PASS_SECONDS * arm.has_model
    return ROUND_SECONDS * parts


def _chances(rng: np.random.Generator, kind: Kind, num_requests: int) -> tuple[Chances, Chances]:
    """Of some requests: that memory's and that the model's token is accepted."""
    memory, model = (
        rng.beta(JITTER * chance, JITTER * (1.0 - chance), num_requests)
        for chance in (kind.memory, kind.model)
    )
    return memory, model


def _request(rng: np.random.Generator, context: PolicyContext, kind: Kind) -> Request:
    (memory,), (model,) = _chances(rng, kind, 1)
    accepted: dict[Arm, Runs] = {}
    outcomes = []
    for arm in ARMS:
        missed = (1.0 - memory) * ((1.0 - model) if arm.has_model else 1.0)
        runs = rng.geometric(max(missed, 1.0 - MOST_CHANCE), REQUEST_TOKENS) - 1
        runs = np.minimum(runs, arm.max_tokens)
        num_rounds = int(np.searchsorted(np.cumsum(runs + 1), REQUEST_TOKENS)) + 1
        accepted[arm] = runs[:num_rounds]
        seconds = round_seconds(kind, arm) * num_rounds
        outcomes.append(Outcome(float(REQUEST_TOKENS), seconds, float(num_rounds)))
    aside = {arm: _revealed(arm, accepted[arm], kind) for arm in ARMS}
    return Request(context, tuple(outcomes), aside)


def _revealed(arm: Arm, runs: Runs, kind: Kind) -> dict[Arm, Outcome]:
    """What its rounds tell of others."""
    told = {}
    for other in ARMS:
        if other != arm and arm.reveals(other):
            needed = [shorter_draft(arm.max_tokens, run, other.max_tokens) for run in runs.tolist()]
            num_rounds = sum(rounds for rounds, _ in needed)
            seconds = round_seconds(kind, other) * num_rounds
            told[other] = Outcome(float(runs.sum() + len(runs)), seconds, float(num_rounds))
    return told


Places = Sequence[tuple[PolicyContext, Kind]]


def _scenario(
    name: str, places: Places, segments: tuple[int, ...], rng: np.random.Generator
) -> Scenario:
    requests = tuple(_request(rng, context, kind) for context, kind in places)
    expected = np.array([[seconds_a_token(kind, arm) for arm in ARMS] for _, kind in places])
    return Scenario(name, ARMS, requests, segments, expected)


ONE: Final = PolicyContext.of(key="tenant:a", workload="w", num_requests=8, num_tokens=2000)


def stationary(rng: np.random.Generator) -> Scenario:
    """One kind throughout."""
    return _scenario("stationary", [(ONE, QUOTING)] * 400, (0,), rng)


def abrupt(rng: np.random.Generator) -> Scenario:
    """The workload changes kind every 150 requests, under the same name."""
    kinds = (REPEATING, NEW, QUOTING, FREE_TEXT, REPEATING)
    places = [(ONE, kind) for kind in kinds for _ in range(150)]
    return _scenario("abrupt", places, tuple(range(0, 750, 150)), rng)


def drifting(rng: np.random.Generator) -> Scenario:
    """What memory knows fades away and comes back, request by request."""
    shares = np.abs(np.linspace(-1.0, 1.0, 600))
    places = [(ONE, Kind(0.15 + 0.78 * share, 0.4, 0.03)) for share in shares]
    return _scenario("drifting", places, (0,), rng)


def adversarial(rng: np.random.Generator) -> Scenario:
    """The best arm becomes the worst every 25 requests."""
    places = [(ONE, (REPEATING, LOADED)[i // 25 % 2]) for i in range(600)]
    return _scenario("adversarial", places, tuple(range(0, 600, 25)), rng)


def many_contexts(rng: np.random.Generator) -> Scenario:
    """Sixty contexts at random: workloads differ in chance, loads in what a token takes."""
    memory = {"a": 0.9, "b": 0.75, "c": 0.55, "d": 0.25}
    places = []
    for _ in range(1200):
        workload, batch = rng.choice(list(memory)), 4 ** int(rng.integers(0, 5))
        context = PolicyContext.of(
            key="tenant:a",
            workload=str(workload),
            num_requests=batch,
            num_tokens=512 * 4 ** int(rng.integers(0, 3)),
        )
        places.append((context, Kind(memory[str(workload)], 0.3, 0.01 * batch**0.7)))
    return _scenario("many_contexts", places, (0,), rng)


def loaded(rng: np.random.Generator) -> Scenario:
    """Every draft loses time."""
    return _scenario("loaded", [(ONE, LOADED)] * 300, (0,), rng)


SCENARIOS: Final[dict[str, Callable[[np.random.Generator], Scenario]]] = {
    "stationary": stationary,
    "abrupt": abrupt,
    "drifting": drifting,
    "adversarial": adversarial,
    "many_contexts": many_contexts,
    "loaded": loaded,
}
