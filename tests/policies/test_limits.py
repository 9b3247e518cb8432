"""The sliding window against what was really taken, and estimates against what was really used."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from paceline.policies.limits import (
    FORGIVEN_WINDOWS,
    PACE_SLACK,
    PARTS,
    LimitsPolicy,
    SlidingWindow,
    TokenEstimate,
)

MINUTE = 60_000
gaps = st.one_of(st.integers(0, 30), st.integers(0, 2_000), st.integers(0, 70_000))
limits = st.one_of(st.integers(1, 12), st.integers(200, 3_000))


def most_in_a_minute(times: Sequence[int]) -> int:
    """Of all half-open windows of a minute; it is enough to look at those that begin with one."""
    return max((bisect_left(times, t + MINUTE) - i for i, t in enumerate(times)), default=0)


def in_the_minute_before(times: Sequence[int], end: int) -> int:
    return bisect_left(times, end) - bisect_left(times, end - MINUTE)


def admitted_at(window: SlidingWindow, arrivals: Sequence[int]) -> list[int]:
    """Arrivals that are let in, one each."""
    let_in = []
    for now in arrivals:
        if window.state(now).remaining:
            window.take(now, 1)
            let_in.append(now)
    window.check_integrity()
    return let_in


@given(limits, st.lists(st.tuples(gaps, st.integers(1, 400)), max_size=40))
def test_no_minute_holds_more_than_the_limit(limit: int, bursts: Sequence[tuple[int, int]]) -> None:
    """Whatever the pattern of arrivals, every window of 60 s has at most the limit."""
    arrivals, now = [], 0
    for gap, count in bursts:
        now += gap
        arrivals += [now] * count
    assert most_in_a_minute(admitted_at(SlidingWindow(limit), arrivals)) <= limit


@pytest.mark.parametrize("limit", [1, 7, 240, 241, 600, 5_000])
@pytest.mark.parametrize("overload", [1.5, 4, 30])
def test_under_steady_overload_every_minute_has_the_limit_within_a_hundredth(
    limit: int, overload: float
) -> None:
    """At an injected clock, from the first full minute on, in every window that ends anywhere."""
    step = MINUTE / (limit * overload)
    arrivals = [int(i * step) for i in range(int(4 * limit * overload))]
    times = admitted_at(SlidingWindow(limit), arrivals)
    assert most_in_a_minute(times) == limit
    # what cannot be: a request that is let in the moment before it arrives
    waits = int(step) + 1
    for end in range(MINUTE + waits, 4 * MINUTE - waits, 137):
        found = bisect_left(times, end + waits) - bisect_left(times, end - MINUTE)
        assert found >= min(limit, 0.99 * limit + 1)


@given(
    st.integers(1, 2_000),
    st.lists(st.tuples(gaps, st.integers(0, 5_000)), min_size=1, max_size=60),
)
def test_what_is_overdrawn_is_paid_back(limit: int, takes: Sequence[tuple[int, int]]) -> None:
    """While nothing is let in that finds no room, the mean stays the limit but for the last one."""
    window, now, taken, largest = SlidingWindow(limit), 0, 0, 0
    for gap, amount in takes:
        now += gap
        if window.state(now).remaining:
            window.take(now, amount)
            taken += amount
            largest = max(largest, amount)
        window.check_integrity()
        assert taken <= limit * (now // MINUTE + 1) + max(largest - 1, 0)


@given(st.integers(1, 500), st.lists(st.integers(0, 3_000), min_size=1, max_size=20))
def test_all_that_was_taken_counts_once_and_then_is_gone(
    limit: int, amounts: Sequence[int]
) -> None:
    """A debt counts in the minutes after, at most the limit in each, and leaves nothing behind."""
    window = SlidingWindow(limit)
    for amount in amounts:
        window.take(0, amount)
    total = min(sum(amounts), limit * (FORGIVEN_WINDOWS + 1))
    for minute in range(total // limit + 2):
        assert window.state(minute * MINUTE).limit == limit
        window.check_integrity()
        assert window.total == min(limit, max(total - minute * limit, 0))
    assert (window.total, window.debt) == (0, 0)


@given(
    st.integers(1, 1_000),
    st.lists(st.tuples(st.integers(0, 9_000), st.integers(0, 900)), max_size=30),
    st.integers(1, 3_000),
    st.booleans(),
)
def test_who_comes_back_when_told_to_is_let_in_and_a_moment_before_is_not(
    limit: int, takes: Sequence[tuple[int, int]], last: int, paced: bool
) -> None:
    """The time to wait is exact, with and without a debt."""

    def taken() -> tuple[SlidingWindow, int]:
        window, now = SlidingWindow(limit, paced=paced), 0
        for gap, amount in [*takes, (0, last)]:
            now += gap
            window.take(now, amount)
        return window, now

    window, now = taken()
    wait = window.state(now).wait_ms
    reset = window.state(now).reset_ms
    if wait:
        assert not window.state(now + wait - 1).remaining
    assert window.state(now + wait).remaining
    window, now = taken()
    if reset:
        assert window.state(now + reset - 1).remaining < limit
    assert window.state(now + reset).remaining == limit


@given(
    st.integers(300, 2_000),  # no debt that is forgiven
    st.lists(st.tuples(gaps, st.integers(0, 900), st.integers(0, 900)), max_size=10),
)
def test_what_is_given_back_counts_no_more(
    limit: int, takes: Sequence[tuple[int, int, int]]
) -> None:
    """Charging too much and giving back at once leaves as much as charging the right amount."""
    corrected, right, now = SlidingWindow(limit), SlidingWindow(limit), 0
    for gap, amount, too_much in takes:
        now += gap
        place = corrected.take(now, amount + too_much)
        corrected.give_back(now, place, too_much)
        right.take(now, amount)
        corrected.check_integrity()
        assert corrected.total + corrected.debt == right.total + right.debt


def test_what_has_left_the_window_cannot_be_given_back() -> None:
    """Its room has been given to others since."""
    window = SlidingWindow(100)
    place = window.take(0, 60)
    window.take(MINUTE, 70)
    window.give_back(MINUTE, place, 60)
    assert window.state(MINUTE).remaining == 30


def test_another_limit_holds_from_now_on() -> None:
    """What was taken still counts under the new one."""
    window = SlidingWindow(100)
    window.take(0, 60)
    window.change_limit(50)
    assert window.state(1).remaining == 0
    window.change_limit(1_000)
    assert window.state(1).remaining == 940


def test_who_always_asks_for_more_is_let_in_evenly_after_the_first_rush() -> None:
    """All at once first, then no rush that is more than a twentieth; each minute the limit."""
    window, seconds = SlidingWindow(600, paced=True), [0] * 300
    for now in range(0, 300_000, 20):
        if window.state(now).remaining:
            window.take(now, 1)
            seconds[now // 1_000] += 1
        else:
            window.turned_away(now)
        window.check_integrity()
    assert sum(seconds[:13]) == 600
    assert max(seconds[60:]) <= 600 / PACE_SLACK + 11
    for start in range(120, 240):
        assert 594 <= sum(seconds[start : start + 60]) <= 600


@pytest.mark.parametrize("limit", [1, 2, 7, 19, 20, 45, 1_000])
def test_pacing_loses_nothing_of_small_limits(limit: int) -> None:
    """Who never stops asking gets the limit in each minute, however small it is."""
    window, times = SlidingWindow(limit, paced=True), []
    for now in range(0, 10 * MINUTE, 10):
        if window.state(now).remaining:
            window.take(now, 1)
            times.append(now)
        else:
            window.turned_away(now)
    assert most_in_a_minute(times) == limit
    for minute in range(10):
        held = sum(minute * MINUTE <= t < (minute + 1) * MINUTE for t in times)
        assert held >= min(0.99 * limit, limit - 1)
    assert len(times) >= 0.99 * 10 * limit - 1


@given(
    st.integers(1, 60),
    st.lists(st.tuples(st.integers(0, 4_000), st.integers(1, 30)), max_size=40),
)
def test_no_minute_of_a_paced_window_holds_more_than_the_limit(
    limit: int, bursts: Sequence[tuple[int, int]]
) -> None:
    """Pacing only ever lets in less."""
    window, now, times = SlidingWindow(limit, paced=True), 0, []
    for gap, count in bursts:
        now += gap
        for _ in range(count):
            if window.state(now).remaining:
                window.take(now, 1)
                times.append(now)
            else:
                window.turned_away(now)
    assert most_in_a_minute(times) <= limit


def test_who_waits_may_rush_again_in_a_paced_window() -> None:
    """Without having been turned away, all of the limit is there each minute."""
    window = SlidingWindow(600, paced=True)
    for minute in range(5):
        assert window.state(minute * MINUTE).remaining == 600
        window.take(minute * MINUTE, 600)


def test_a_window_stays_small() -> None:
    """A million single requests are kept in 240 parts and the one that begins."""
    window = SlidingWindow(1_000_000)
    for now in range(50_000):
        window.take(now, 20)
    assert window.num_entries <= 2 * PARTS + 2


def test_no_limit_is_none() -> None:
    """And any is one."""
    assert LimitsPolicy().is_none
    for name in LimitsPolicy.model_fields:
        assert not LimitsPolicy.model_validate({name: 3}).is_none


@pytest.mark.parametrize("value", [0, -1, "many", 10**13])
def test_a_limit_is_a_positive_number(value: object) -> None:
    """Nothing else is taken, and no unknown name."""
    with pytest.raises(ValidationError):
        LimitsPolicy.model_validate({"concurrency": value})
    with pytest.raises(ValidationError):
        LimitsPolicy.model_validate({"requests_per_hour": 1})


def test_an_estimate_is_right_on_the_average() -> None:
    """Of a mixture of prompts and replies, within a hundredth over two thousand requests."""
    rng, estimate = random.Random(7), TokenEstimate()  # noqa: S311  test data
    expected = used = 0
    for number in range(2_300):
        num_bytes, said = rng.randint(400, 40_000), rng.choice((20, 200, 1_500))
        read = round(num_bytes / 3.7)
        if number >= 300:
            expected += estimate.expect(num_bytes, None)
            used += read + said
        estimate.learn(num_bytes, read, said)
    assert expected == pytest.approx(used, rel=0.01)


def test_who_may_say_little_is_expected_to_say_little() -> None:
    """A request's own bound cuts the expectation; it is never nothing."""
    estimate = TokenEstimate()
    estimate.learn(400, 100, 1_000)
    assert estimate.expect(400, None) == 1_100
    assert estimate.expect(400, 10) == 110
    assert estimate.expect(0, 0) == 1
