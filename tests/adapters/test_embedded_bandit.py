"""The bandit in the embedded engine, by a clock that passes alone move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

from paceline.adapters.metrics import MemoryCollector, registry_of
from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from paceline.benchmarks.policy.simulated_engine import Deluded, PassClock, Spelling
from small_models import VOCABULARY, random_model

if TYPE_CHECKING:
    from paceline.adapters.embedded.engine import EmbeddedEngine
    from paceline.adapters.embedded.requests import Progress

NUM_REQUESTS = 4
REPLY_TOKENS = 48
FIXED, REQUEST, TOKEN = 0.03, 0.002, 0.001
"""Seconds of a pass of the target."""


def make_engine(
    speculator: Speculator | None,
    *,
    drafter_seed: int | None = None,
    step: float = 0.0,
    **settings: Any,
) -> EmbeddedEngine:
    """An engine on a small model of random weights, whose passes take what is said.

    Args:
        speculator: drafts from memory.
        drafter_seed: of a model beside it, whose passes take a fifth; 3 is the target itself.
        step: seconds more of a pass in which any draft is verified.
        settings: further ones.
    """
    from paceline.adapters.embedded.engine import EmbeddedEngine
    from paceline.adapters.embedded.engine_settings import EngineSettings
    from paceline.adapters.embedded.target import Target

    clock = PassClock()

    def make_target(seed: int, share: float, step: float) -> Target:
        target = Target(random_model("llama", seed=seed), Spelling())
        target.eos_token_ids = frozenset()
        forward = target.forward

        def timed(rows: Any) -> Any:
            num_tokens = sum(len(row.token_ids) for row in rows)
            seconds = FIXED + REQUEST * len(rows) + TOKEN * num_tokens
            clock.now += share * seconds + (step if num_tokens > len(rows) else 0.0)
            return forward(rows)

        target.forward = timed  # type: ignore[method-assign]
        return target

    return EmbeddedEngine(
        make_target(3, 1.0, step),
        speculator,
        EngineSettings(max_running=NUM_REQUESTS, **{"bandit": True} | settings),
        drafter=None if drafter_seed is None else make_target(drafter_seed, 0.2, 0.0),
        clock=clock,
    )


def replies(
    engine: EmbeddedEngine, turns: range, *, tenants: Sequence[str] = ("t",), distinct: int = 1000
) -> tuple[float, list[list[int]]]:
    """Seconds that turns of `NUM_REQUESTS` requests at once take, and what is said."""
    from paceline.adapters.embedded.requests import GenerationRequest, Job
    from paceline.adapters.embedded.sampling import SamplingParams

    said: list[list[Progress]] = []
    began_at = engine._clock()
    for turn in turns:
        for i in range(NUM_REQUESTS):
            said.append([])
            request = GenerationRequest(
                info=RequestInfo(request_id=f"{turn}-{i}", tenant=tenants[i % len(tenants)]),
                prompt_ids=tuple(
                    (turn % distinct * 31 + i * 7 + k * k) % VOCABULARY for k in range(12)
                ),
                max_tokens=REPLY_TOKENS,
                sampling=SamplingParams(temperature=0.0),
            )
            engine.admit(Job(request, said[-1].append))
        while engine.sizes()["running"]:
            engine.step()
    tokens = [[token for step in steps for token in step.token_ids] for steps in said]
    return engine._clock() - began_at, tokens


def arms_of(engine: EmbeddedEngine) -> dict[str, int]:
    assert engine.arms is not None
    assert engine.arms.failures.count == engine.draft_failures.count == 0
    return engine.arms.arm_rounds()


BURN_IN, MEASURED = range(4), range(4, 14)


@pytest.mark.parametrize("tenants", [("t",), ("t", "u", "v", "w")], ids=["together", "apart"])
def test_probabilities_that_are_wrong_cost_nothing_for_long(tenants: tuple[str, ...]) -> None:
    """With junk that memory is sure of, the engine ends without drafts, and as fast.

    Chosen by time alone it stays slower, as it believes what memory says. What is said is the same.
    """
    seconds, said = {}, {}
    for name, speculator, settings in (
        ("off", None, {}),
        ("time", Deluded(), {"bandit": False}),
        ("bandit", Deluded(), {}),
    ):
        engine = make_engine(speculator, **settings)
        _, first = replies(engine, BURN_IN, tenants=tenants)
        before = {} if engine.arms is None else arms_of(engine)
        seconds[name], rest = replies(engine, MEASURED, tenants=tenants)
        said[name] = first + rest
    assert said["time"] == said["bandit"] == said["off"]
    assert seconds["off"] / seconds["time"] < 0.65
    assert seconds["off"] / seconds["bandit"] >= 0.98
    used = {arm: num - before.get(arm, 0) for arm, num in arms_of(engine).items()}
    assert used["none"] > 0.98 * sum(used.values())


def test_costs_that_no_plane_has_are_seen() -> None:
    """Where the first drafted token of a round costs most, rounds do not stay slower for it.

    Neither chosen by time, which learns of steps, nor with the bandit above.
    """
    seconds = {}
    for name, speculator, settings in (
        ("off", None, {}),
        ("time", Speculator(), {"bandit": False}),
        ("bandit", Speculator(), {}),
    ):
        engine = make_engine(speculator, step=0.12, **settings)
        replies(engine, range(8))
        seconds[name], _ = replies(engine, range(8, 16))
    assert seconds["off"] / seconds["time"] > 0.98
    assert seconds["off"] / seconds["bandit"] > 0.98


def test_good_drafts_lose_nothing() -> None:
    """Where memory is right and sure of it, the choice is as fast as the one by time alone."""
    seconds = {}
    for bandit in (False, True):
        engine = make_engine(Speculator(), bandit=bandit)
        replies(engine, range(16), distinct=2)  # with some rounds to see what they take
        seconds[bandit], _ = replies(engine, range(16, 48), distinct=2)
    assert seconds[False] / seconds[True] > 0.98
    assert "none" not in arms_of(engine)


def test_memory_comes_back_to_what_it_knows() -> None:
    """A tenant whose first requests were new drafts once they come again, though drafts had ended.

    What memory would have said is heard meanwhile, for no time of the target.
    """
    engine = make_engine(Speculator(), step=0.12)
    replies(engine, range(8))
    assert arms_of(engine)["none"] > arms_of(engine)["memory-8"]
    before = engine.counts.accepted_tokens
    replies(engine, range(8, 24), distinct=1)
    assert engine.counts.accepted_tokens - before > 0.3 * 16 * NUM_REQUESTS * REPLY_TOKENS


@pytest.mark.parametrize("drafter_seed", [3, 4], ids=["right", "useless"])
def test_a_drafter_beside_memory_is_chosen_too(drafter_seed: int) -> None:
    """Arms with the model are held where it is right; what is said does not depend on it."""
    _, expected = replies(make_engine(None), range(6))
    engine = make_engine(Speculator(), drafter_seed=drafter_seed)
    _, said = replies(engine, range(6))
    assert said == expected
    arms = arms_of(engine)
    with_model = sum(num for arm, num in arms.items() if arm.startswith("both"))
    if drafter_seed == 3:
        assert with_model > 0.8 * sum(arms.values())
    assert engine.arms is not None
    engine.arms.reset_drafter("next")
    replies(engine, range(6, 8))
    assert arms_of(engine)["both-8"] > arms["both-8"]


def test_errors_of_the_choice_reach_nobody() -> None:
    """A bandit that fails in every round is counted, and memory drafts as without it."""
    seconds = {}
    for name in ("none", "broken"):
        engine = make_engine(Speculator(), bandit=name != "none")
        if engine.arms is not None:
            engine.arms._begun = broken  # type: ignore[method-assign]
        seconds[name], said = replies(engine, range(4), distinct=2)
    assert engine.arms is not None
    assert engine.arms.failures.count > 20
    assert engine.draft_failures.count == 0
    assert seconds["broken"] == pytest.approx(seconds["none"])
    assert said == replies(make_engine(None), range(4), distinct=2)[1]


def broken(*_: Any) -> Any:
    raise RuntimeError("broken on purpose")


def test_always_drafting_switches_it_off() -> None:
    """And so does its own setting, which is off by default, and no speculation."""
    from paceline.adapters.embedded.engine import EngineSettings

    assert make_engine(Speculator(), always_draft=True).arms is None
    assert make_engine(Speculator(), bandit=False).arms is None
    assert not EngineSettings().bandit
    assert make_engine(None).arms is None
    assert make_engine(Speculator()).arms is not None


def test_a_request_leaves_nothing_behind() -> None:
    """Requests that ended are forgotten; one that is open can be asked what it drafts with."""
    from paceline.adapters.embedded.requests import GenerationRequest, Job
    from paceline.adapters.embedded.sampling import SamplingParams

    engine = make_engine(Speculator())
    request = GenerationRequest(
        info=RequestInfo(request_id="r", tenant="t"),
        prompt_ids=(5, 6, 7),
        max_tokens=8,
        sampling=SamplingParams(temperature=0.0),
    )
    engine.admit(Job(request, lambda _: None))
    engine.step()
    engine.step()
    assert engine.arms is not None
    assert engine.arms.reason("r") == "memory-8"
    while engine.sizes()["running"]:
        engine.step()
    assert engine.arms.reason("r") == ""
    assert not engine.arms._open


def test_arms_stand_in_the_metrics() -> None:
    """Rounds by arm, and what was pulled, with the engine's other figures."""
    from prometheus_client import generate_latest

    speculator = Speculator()
    engine = make_engine(speculator)
    replies(engine, range(3))
    text = generate_latest(registry_of(MemoryCollector(speculator, figures=engine.figures)))
    lines = text.decode().splitlines()
    for arm, num in arms_of(engine).items():
        assert f'paceline_arm_rounds_total{{arm="{arm}"}} {float(num)}' in lines
    assert any(
        line.startswith('paceline_draft_events_total{event="arms_pulled"}') for line in lines
    )
