"""The circuit breaker, at a clock of the test's own."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.middleware.circuit import CircuitBreaker, CircuitState


class Bench:
    """A breaker, its clock and its changes."""

    def __init__(self, **settings: float) -> None:
        self.now = 100.0
        self.changes: list[CircuitState] = []
        self.breaker = CircuitBreaker(
            num_failures=int(settings.get("num_failures", 3)),
            backoff_seconds=settings.get("backoff_seconds", 1.0),
            max_backoff_seconds=settings.get("max_backoff_seconds", 30.0),
            on_change=self.changes.append,
            clock=lambda: self.now,
            rng=random.Random(7),  # noqa: S311  jitter
        )

    def fail(self, times: int) -> None:
        for _ in range(times):
            self.breaker.failed()


def test_failures_in_a_row_open_it_and_a_whole_answer_ends_the_row() -> None:
    """Two failures, an answer, two failures: closed; a third in a row opens it."""
    bench = Bench()
    bench.fail(2)
    bench.breaker.succeeded()
    bench.fail(2)
    assert bench.breaker.state is CircuitState.CLOSED
    bench.fail(1)
    assert bench.breaker.state is CircuitState.OPEN
    assert not bench.breaker.permits


def test_one_request_tries_a_half_open_circuit() -> None:
    """The second waits; when the trial's client left, the next one is the trial."""
    bench = Bench()
    bench.fail(3)
    bench.now += 1.0
    assert bench.breaker.permits
    assert bench.breaker.begin()
    assert not bench.breaker.permits
    assert not bench.breaker.begin()
    bench.breaker.abandon()
    assert bench.breaker.begin()
    bench.breaker.began_to_answer()
    assert bench.changes == [CircuitState.OPEN, CircuitState.HALF_OPEN, CircuitState.CLOSED]


def test_after_a_trial_it_is_on_probation_until_an_answer_is_whole() -> None:
    """A stream that breaks off opens it again; after a whole answer three failures are needed."""
    bench = Bench()
    bench.fail(3)
    bench.now += 1.0
    bench.breaker.begin()
    bench.breaker.began_to_answer()
    bench.fail(1)
    assert bench.breaker.state is CircuitState.OPEN
    bench.now += 2.0
    bench.breaker.begin()
    bench.breaker.began_to_answer()
    bench.breaker.succeeded()
    bench.fail(2)
    assert bench.breaker.state is CircuitState.CLOSED


def test_backoffs_double_with_jitter_up_to_the_longest() -> None:
    """Each lies in the upper half of 1, 2, 4, 8, 8 s, and they are not all the same part of it."""
    bench = Bench(max_backoff_seconds=8.0)
    bench.fail(3)
    parts = []
    for longest in (1.0, 2.0, 4.0, 8.0, 8.0):
        wait = bench.breaker.wait_seconds
        assert longest / 2 <= wait <= longest
        parts.append(wait / longest)
        bench.now += wait
        assert bench.breaker.begin()
        bench.breaker.failed()
    assert len(set(parts)) > 1


def test_a_good_look_ends_the_backoff() -> None:
    """An engine that is back need not wait for the rest of half a minute."""
    bench = Bench(backoff_seconds=30.0)
    bench.fail(3)
    bench.breaker.try_now()
    assert bench.breaker.state is CircuitState.HALF_OPEN


@given(
    st.lists(
        st.sampled_from(["begin", "abandon", "answer", "succeed", "fail", "open", "try", "wait"]),
        max_size=80,
    )
)
def test_whatever_happens_it_lets_somebody_through_in_the_end(events: list[str]) -> None:
    """No order of events leaves it shut for longer than the longest backoff."""
    bench = Bench(max_backoff_seconds=4.0)
    breaker = bench.breaker
    for event in events:
        if event == "begin" and breaker.permits:
            breaker.begin()
        elif event == "wait":
            bench.now += 0.7
        else:
            {
                "abandon": breaker.abandon,
                "answer": breaker.began_to_answer,
                "succeed": breaker.succeeded,
                "fail": breaker.failed,
                "open": breaker.open,
                "try": breaker.try_now,
                "begin": lambda: None,
            }[event]()
        assert breaker.wait_seconds <= 4.0
        assert breaker.permits or breaker.state is not CircuitState.CLOSED
    bench.now += 4.0
    breaker.abandon()
    assert breaker.permits


def test_it_says_what_it_is() -> None:
    """For logs and debuggers."""
    bench = Bench()
    bench.fail(1)
    assert repr(bench.breaker) == "CircuitBreaker(closed, 1 failures)"
    with pytest.raises(AttributeError):
        bench.breaker.state = CircuitState.OPEN  # type: ignore[misc]
