"""What the bandit is worth in an engine: the same requests without drafts, by time alone, with it.

Each case is a `SimulatedEngine`; speeds are times that without drafts, by the clock that passes
move. The same seed gives the same figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from paceline.benchmarks.policy.simulated_engine import (
    FIXED_SECONDS,
    REQUEST_SECONDS,
    Drafter,
    Memory,
    PassTime,
    SimulatedEngine,
)
from paceline.errors import PacelineError

CHEAP, DEAR = 0.001, 0.015
"""Seconds of a token: a fiftieth and a ninth of a round of six requests without drafts."""
NOISE: Final = 0.1
REPEATING, NEW = 2, 1000
"""Turns after which the same is asked again."""
SHORT, LONG = 30, 80
WAYS: Final[dict[str, bool]] = {"time": False, "bandit": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is simulated.

    Attributes:
        title: of its row.
        distinct: turns after which what is asked comes again.
        token_seconds: what a token takes.
        num_requests: at once.
        num_tenants: that they are of.
        memory: what drafts from it.
        drafter: beside it.
        step: what the first drafted token of a round takes more, in rounds without drafts.
        num_turns: of requests.
        num_runs: with noise of their own, of which the mean is told.
    """

    title: str
    distinct: int = NEW
    token_seconds: float = CHEAP
    num_requests: int = 6
    num_tenants: int = 1
    memory: Memory = "sound"
    drafter: Drafter = "none"
    step: float = 0.0
    num_turns: int = SHORT
    num_runs: int = 1

    @property
    def time(self) -> PassTime:
        """What its passes take."""
        by_request = REQUEST_SECONDS + self.token_seconds
        undrafted = FIXED_SECONDS + self.num_requests * by_request
        return PassTime(token=self.token_seconds, step=self.step * undrafted, noise=NOISE)


CASES: Final[dict[str, Case]] = {
    "repeating-cheap": Case(title="text that repeats, cheap tokens", distinct=REPEATING),
    "repeating-cheap-1": Case(title="the same, one request", distinct=REPEATING, num_requests=1),
    "repeating-dear": Case(
        title="text that repeats, dear tokens", distinct=REPEATING, token_seconds=DEAR
    ),
    "new-dear": Case(title="new text, dear tokens", token_seconds=DEAR),
    "new-cheap": Case(title="new text, cheap tokens"),
    "drafter-right": Case(title="a drafter that is right", drafter="right"),
    "drafter-useless": Case(title="a drafter that is useless", drafter="useless"),
    "deluded": Case(title="memory that is sure of junk (0.99)", memory="deluded"),
    "deluded-1": Case(title="the same, one request", memory="deluded", num_requests=1),
    "deluded-3": Case(title="the same, three tenants", memory="deluded", num_tenants=3),
    "deluded-drafter": Case(
        title="the same beside a drafter that is right", memory="deluded", drafter="right"
    ),
    "step-2-new": Case(title="the first drafted token takes 2 rounds more, new text", step=2.0),
    "new-dear-long": Case(
        title="new text, dear tokens, 80 turns", token_seconds=DEAR, num_turns=LONG, num_runs=3
    ),
    "step-0.7-repeating": Case(
        title="the first drafted token takes 0.7 of a round more, text that repeats",
        distinct=REPEATING,
        step=0.7,
        num_turns=LONG,
        num_runs=3,
    ),
    "step-0.7-new": Case(title="the same, new text", step=0.7, num_turns=LONG, num_runs=3),
    "step-2-repeating": Case(
        title="the first drafted token takes 2 rounds more, text that repeats",
        distinct=REPEATING,
        step=2.0,
        num_turns=LONG,
        num_runs=3,
    ),
}


def simulate(
    case: Case, *, seed: int = 0, num_turns: int = 0, advance: Callable[[], object] = lambda: None
) -> dict[str, float]:
    """Times the speed without drafts, of each way: all turns, and their second half.

    Args:
        case: what is simulated.
        seed: of the noise.
        num_turns: instead of the case's; 0 for those.
        advance: called after each run of an engine.

    Raises:
        PacelineError: a way said something else than the target, or something in it failed.
    """
    found: dict[str, list[float]] = {}
    for run in range(case.num_runs):
        turns = num_turns or case.num_turns
        undrafted, expected = _seconds(case, "off", seed + run, turns)
        advance()
        for way in WAYS:
            taken, said = _seconds(case, way, seed + run, turns)
            advance()
            if said != expected:
                raise PacelineError(f"{case.title}: {way} said something else than the target")
            found.setdefault(way, []).append(sum(undrafted) / sum(taken))
            found.setdefault(f"{way}_second_half", []).append(undrafted[1] / taken[1])
    return {name: float(np.mean(values)) for name, values in found.items()}


def _seconds(
    case: Case, way: str, seed: int, num_turns: int
) -> tuple[tuple[float, float], list[list[int]]]:
    """Of the first half of the turns and of the second; and what was said."""
    simulated = SimulatedEngine(
        "none" if way == "off" else case.memory,
        drafter="none" if way == "off" else case.drafter,
        time=case.time,
        num_requests=case.num_requests,
        seed=seed,
        bandit=WAYS.get(way, False),
    )
    half = num_turns // 2
    first, said = simulated.answer(range(half), tenants=case.num_tenants, distinct=case.distinct)
    second, rest = simulated.answer(
        range(half, num_turns), tenants=case.num_tenants, distinct=case.distinct
    )
    if simulated.failures():
        raise PacelineError(f"{case.title}: {simulated.failures()} errors of drafting, {way}")
    return (first, second), said + rest
