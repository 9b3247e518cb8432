"""What rounds of vLLM take, by a clock that the tests move."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from paceline.adapters.vllm.round_clock import RoundClock
from paceline.policies.round_cost import RoundCost


class Clock:
    """Seconds that go by when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def step(
    scheduled: dict[str, int], *, drafted: int = 0, new: Sequence[str] = (), context: int = 100
) -> Any:
    """As vLLM's scheduler says it; so much context for each request that is not new."""
    cached = [name for name in scheduled if name not in new]
    return SimpleNamespace(
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=cached, num_computed_tokens=[context] * len(cached)
        ),
        num_scheduled_tokens=scheduled,
        scheduled_spec_decode_tokens={name: [0] * drafted for name in cached} if drafted else {},
        scheduled_new_reqs=list(new),
    )


class Recorder(RoundCost):
    """Remembers what it is taught: requests, tokens, seconds, tokens of prompts."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int, float, int]] = []

    def learn(
        self,
        num_requests: int,
        num_tokens: int,
        seconds: float,
        *,
        num_context: float = 0.0,
        num_prompt: int = 0,
    ) -> None:
        """Note one round."""
        assert num_context == 100 * num_requests
        self.seen.append((num_requests, num_tokens, seconds, num_prompt))
        super().learn(
            num_requests, num_tokens, seconds, num_context=num_context, num_prompt=num_prompt
        )


def run(*rounds: tuple[Any, float]) -> list[tuple[int, int, float, int]]:
    """What is learned of steps that take so long, to the beginning of the next."""
    clock, cost = Clock(), Recorder()
    watch = RoundClock(cost, clock=clock)
    for each, seconds in rounds:
        watch.begin(each)
        clock.now += seconds
    return cost.seen


PLAIN, DRAFTED = step({"a": 1, "b": 1}), step({"a": 4, "b": 4}, drafted=3)


def test_a_round_lasts_until_the_next_begins() -> None:
    """With its requests and tokens, drafted ones too."""
    assert run((PLAIN, 2.0), (DRAFTED, 3.0), (PLAIN, 1.0)) == [(2, 2, 2.0, 0), (2, 8, 3.0, 0)]


@pytest.mark.parametrize(
    ("other", "taught"),
    [
        (step({"a": 1, "b": 40}), (1, 1, 9.0, 40)),
        (step({"a": 1, "c": 12}, new=["c"]), (1, 1, 9.0, 12)),
        (step({"a": 4, "b": 5}, drafted=3), (1, 4, 9.0, 5)),
    ],
    ids=["chunk", "new request", "more than was drafted"],
)
def test_prompts_are_told_apart_from_answers(
    other: Any, taught: tuple[int, int, float, int]
) -> None:
    """A round with both teaches what both take."""
    seen = run((PLAIN, 2.0), (other, 9.0), (PLAIN, 1.0), (PLAIN, 1.0))
    assert seen == [(2, 2, 2.0, 0), taught, (2, 2, 1.0, 0)]


def test_a_round_that_answers_nobody_teaches_nothing() -> None:
    """There is no draft in it, nor could one have been."""
    assert run((PLAIN, 2.0), (step({"c": 90}), 9.0), (PLAIN, 1.0)) == [(2, 2, 2.0, 0)]


def test_waiting_for_something_to_do_is_no_part_of_a_round() -> None:
    """After which all requests are new, or a step had nothing to compute."""
    idle = step({"c": 1}, new=["c"])
    assert run((PLAIN, 2.0), (PLAIN, 60.0), (idle, 1.0)) == [(2, 2, 2.0, 0)]
    assert run((PLAIN, 60.0), (step({}), 60.0), (PLAIN, 1.0)) == []
    joined = step({"a": 1, "c": 30}, new=["c"])
    assert run((PLAIN, 2.0), (joined, 1.0)) == [(2, 2, 2.0, 0)]


def test_what_a_round_took_is_told_without_its_prompts() -> None:
    """Where these did not take most of it: then nothing is told."""
    clock, cost = Clock(), Recorder()
    watch = RoundClock(cost, clock=clock)
    told = []
    for num_prompt in [10, 40, 70, 100] * 40:
        watch.begin(step({"a": 1, "b": 1, "c": num_prompt}))
        told.append(watch.ended)
        clock.now += 1.0 + 0.02 * num_prompt
    assert cost.prompt_seconds == pytest.approx(0.02, rel=0.05)
    assert told[-4] is None  # behind a prompt of 100: two seconds of three
    assert told[-2] is not None
    assert told[-2].seconds == pytest.approx(1.0, rel=0.1)
    assert (told[-2].num_requests, told[-2].num_tokens) == (2, 2)


def test_a_models_passes_are_no_part_of_the_targets_round() -> None:
    """They are accounted for on their own, and begin anew with each round."""
    clock, cost = Clock(), Recorder()
    watch = RoundClock(cost, clock=clock)
    watch.begin(PLAIN)
    clock.now += 2.0
    with watch.drafting():
        clock.now += 0.5
    assert watch.model_seconds == 0.5
    assert watch.is_answering
    watch.begin(step({"a": 7}, new=["a"]))
    assert cost.seen == []
    assert watch.model_seconds == 0.0
    assert not watch.is_answering
    watch.begin(PLAIN)
    with watch.drafting():
        clock.now += 1.0
    clock.now += 3.0
    watch.begin(PLAIN)
    assert cost.seen == [(2, 2, 3.0, 0)]


def test_what_a_round_is_expected_to_take_is_told() -> None:
    """With its drafting, and without drafts; a prompt that is read beside does not count."""
    clock, cost = Clock(), RoundCost()
    watch = RoundClock(cost, clock=clock)
    assert watch.spent() == (0.0, 0.0)
    for number in range(60):
        num_drafted = number % 4
        watch.begin(step({"a": 1 + num_drafted}, drafted=num_drafted))
        clock.now += 1.0 + 0.1 * num_drafted
        with watch.drafting():
            clock.now += 0.05
    watch.begin(step({"a": 4}, drafted=3))
    spent, undrafted = watch.spent()
    assert spent == pytest.approx(1.35, rel=0.02)
    assert undrafted == pytest.approx(1.0, rel=0.02)
    watch.begin(step({"a": 1, "b": 500}, new=["b"]))
    spent, undrafted = watch.spent()
    assert spent == pytest.approx(1.0, rel=0.02)
    assert undrafted == pytest.approx(1.0, rel=0.02)
