"""The gate lets pass what is surely better, and nothing else, as far as can be told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.errors import ConfigError
from paceline.online.greedy_replay import ReplayCounts
from paceline.online.promotion import (
    GateSettings,
    SessionReplay,
    chance_of_gain,
    expanded_tail,
    gathered,
    judge,
)

QUICK = GateSettings(num_resamples=400)


def counts(tokens: int, rounds: int) -> ReplayCounts:
    """Of a text that takes so many rounds."""
    return ReplayCounts(
        num_tokens=tokens,
        num_agreed=tokens - rounds,
        num_rounds=rounds,
        num_accepted=tokens - rounds,
    )


def session(number: int, before: int, after: int, *, tokens: int = 200, workload: str = "w") -> Any:
    return SessionReplay(
        session=f"s{number}",
        workload=workload,
        before=counts(tokens, before),
        after=counts(tokens, after),
    )


def noisy(
    seed: int, num: int, gain: float = 0.0, *, first: int = 0, workload: str = "w"
) -> list[SessionReplay]:
    """Sessions of very different lengths, on which two drafters differ by chance and a gain."""
    rng = np.random.default_rng(seed)
    made: list[SessionReplay] = []
    for number in range(num):
        tokens = int(min(4000, 40 + 60 * rng.pareto(1.2)))
        share = rng.beta(4, 4)
        before, after = (
            int(np.clip(tokens * (1 - share + rng.normal(0, 0.08) - more), 1, tokens))
            for more in (0.0, gain)
        )
        made.append(session(first + number, before, after, tokens=tokens, workload=workload))
    return made


numbers = st.integers(0, 300)
replays = st.lists(st.tuples(numbers, numbers, st.sampled_from("abc")), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None)
@given(replays)
def test_an_identical_drafter_never_passes(rows: list[tuple[int, int, str]]) -> None:
    """Whatever the sessions are: its lower bound is exactly 0, and one reason says so."""
    same = [
        session(number, rounds, rounds, tokens=rounds + accepted, workload=workload)
        for number, (rounds, accepted, workload) in enumerate(rows)
    ]
    result = judge(same, QUICK)
    assert not result.passed
    assert result.lower_bound == 0
    assert result.before == result.after
    assert any("not surely better" in reason for reason in result.reasons)
    assert not any("is worse" in reason for reason in result.reasons)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(2, 300), numbers, st.sampled_from("abc")), min_size=20))
def test_one_that_is_better_everywhere_passes(rows: list[tuple[int, int, str]]) -> None:
    """On every session a round less, with twenty of them."""
    better = [
        session(number, rounds, rounds - 1, tokens=rounds + accepted, workload=workload)
        for number, (rounds, accepted, workload) in enumerate(rows)
    ]
    result = judge(better, QUICK)
    assert result.reasons == ()
    assert result.passed
    assert result.after > result.before
    assert 0 < result.lower_bound <= result.after - result.before


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_one_that_is_worse_everywhere_never_passes(seed: int) -> None:
    """Nor does one that is better in all but the largest sessions."""
    assert not judge(noisy(seed, 30, gain=-0.2), QUICK).passed
    small = [session(number, 20, 19, tokens=30) for number in range(20)]
    large = [session(100 + number, 900, 1100, tokens=3000) for number in range(5)]
    assert not judge([*small, *large], QUICK).passed


def test_a_gain_that_costs_a_workload_is_refused() -> None:
    """It is named with its figures; without it the same candidate passes."""
    good = noisy(1, 60, gain=0.2)
    assert judge(good, QUICK).passed
    bad = noisy(2, 12, gain=-0.15, first=100, workload="sql")
    result = judge([*good, *bad], QUICK)
    assert result.after > result.before
    assert result.lower_bound > 0
    assert not result.passed
    (reason,) = result.reasons
    assert reason.startswith("workload sql is worse: ")
    assert "(12 sessions); 0.05 may be lost" in reason
    assert [(it.workload, it.num_sessions) for it in result.slices] == [("sql", 12), ("w", 60)]
    for it in result.slices:
        assert (it.after > it.before) == (it.workload == "w")


def test_a_loss_within_the_margin_is_let_pass() -> None:
    """A workload may lose what the setting says, even if it surely does."""
    good = noisy(1, 60, gain=0.2)
    bad = [session(100 + i, 100, 101, workload="sql") for i in range(40)]
    assert judge([*good, *bad], QUICK).passed
    strict = GateSettings(num_resamples=400, slice_margin=0.0)
    assert judge([*good, *bad], strict).reasons[0].startswith("workload sql is worse")


def test_noise_in_a_few_sessions_forbids_nothing() -> None:
    """Of many small workloads that chance makes better or worse, hardly one in fifty times any is
    called worse; too small ones are judged together all the same."""
    num_refused = 0
    for seed in range(50):
        good = noisy(seed, 60, gain=0.2)
        others = [
            it
            for number in range(12)
            for it in noisy(
                1000 * seed + number,
                1 + number,
                first=100 * (number + 1),
                workload=f"small-{number}",
            )
        ]
        reasons = judge([*good, *others], QUICK).reasons
        num_refused += any("is worse" in reason for reason in reasons)
    assert num_refused <= 1
    bad = [session(100 + i, 100, 130, workload=f"one-{i}") for i in range(9)]
    (reason,) = judge([*noisy(1, 60, gain=0.2), *bad], QUICK).reasons
    assert reason.startswith("(workloads with few sessions) is worse")
    assert judge([*noisy(1, 60, gain=0.2), *bad[:7]], QUICK).passed, "too few to tell"


@pytest.mark.parametrize("num_sessions", [20, 40])
def test_chance_passes_in_one_of_twenty_at_most(num_sessions: int) -> None:
    """Where drafters do not differ, however uneven sessions are: counted over 1000 candidates.

    Over 6000 it is 4.7 %; by the bootstrap alone, 7 %.
    """
    passed = sum(
        judge(
            noisy(7_000_000 * num_sessions + trial, num_sessions),
            GateSettings(num_resamples=400, seed=trial),
        ).passed
        for trial in range(1000)
    )
    assert 0 < passed <= 50, passed


def test_a_real_gain_is_found() -> None:
    """A tenth fewer rounds passes with sixty sessions, nearly always."""
    passed = sum(judge(noisy(trial, 60, gain=0.1), QUICK).passed for trial in range(40))
    assert passed >= 38


def test_too_few_sessions_let_nothing_pass() -> None:
    """However good it looks; the number and what is needed are named."""
    better = [session(number, 100, 50) for number in range(19)]
    result = judge(better, QUICK)
    assert result.reasons == ("only 19 held-out sessions, 20 are needed to tell",)
    assert judge([*better, session(19, 100, 50)], QUICK).passed
    for none in ([], [session(0, 0, 0, tokens=1)]):
        result = judge(none, QUICK)
        assert (result.num_sessions, result.before, result.lower_bound) == (0, 0.0, 0.0)
        assert not result.passed
    (one,) = better[:1]
    assert judge([one], QUICK).lower_bound == 0


def test_a_session_counts_once() -> None:
    """Its parts of several workloads are one draw, for all that many parts would make it surer."""
    parts = [session(number % 10, 100, 90, workload=f"w{number // 10}") for number in range(40)]
    result = judge(parts, QUICK)
    assert result.num_sessions == 10
    assert [it.num_sessions for it in result.slices] == [10, 10, 10, 10]
    assert result.reasons == ("only 10 held-out sessions, 20 are needed to tell",)


def test_the_verdict_depends_on_nothing_else() -> None:
    """Not on the order of sessions, nor on what was drawn before."""
    sessions = noisy(5, 40, gain=0.05)
    first = judge(sessions, QUICK)
    assert judge(sessions[::-1], QUICK) == first
    assert judge(sessions, QUICK) == first


def test_figures_are_ratios_of_sums() -> None:
    """Tokens a round over all sessions, by hand."""
    sessions = [session(0, 10, 5, tokens=20), session(1, 30, 15, tokens=60, workload="v")]
    result = judge(sessions, QUICK)
    assert (result.before, result.after, result.num_rounds) == (1.0, 3.0, 40)
    assert (result.agreement_before, result.agreement_after) == (0.5, 0.75)
    assert result.slices[0].after == 3.0


@pytest.mark.parametrize(
    ("alpha", "num", "t"),
    [(0.05, 5, 2.132), (0.05, 20, 1.729), (0.05, 200, 1.653), (0.0025, 12, 3.497)],
)
def test_tails_are_those_of_students_t(alpha: float, num: int, t: float) -> None:
    """Against the tables of its quantiles."""
    from statistics import NormalDist

    found = -NormalDist().inv_cdf(expanded_tail(alpha, num)) / np.sqrt(num / (num - 1))
    assert found == pytest.approx(t, rel=0.01)


def test_chance_is_what_all_swaps_give() -> None:
    """With few sessions, where every swap can be tried."""
    rng = np.random.default_rng(0)
    table = rng.integers(1, 50, (8, 4))

    def gain(rows: npt.NDArray[np.int64]) -> float:
        sums = rows.sum(axis=0)
        return float(sums[2] / sums[3] - sums[0] / sums[1])

    swaps = [
        gain(np.where(((number >> np.arange(8)) & 1)[:, None], table[:, [2, 3, 0, 1]], table))
        for number in range(256)
    ]
    exact = float(np.mean([each >= gain(table) for each in swaps]))
    assert chance_of_gain(table, GateSettings()) == pytest.approx(exact, abs=0.02)


def test_passages_add_up_to_sessions() -> None:
    """By session and workload, whatever their order."""
    keys = [("s", "a"), ("t", "a"), ("s", "a"), ("s", "b")]
    before = [counts(10, number) for number in (1, 2, 3, 4)]
    after = [counts(10, number) for number in (5, 6, 7, 8)]
    found = {(it.session, it.workload): it for it in gathered(keys, before, after)}
    assert set(found) == set(keys)
    assert found["s", "a"].before == counts(20, 4)
    assert found["s", "a"].after == counts(20, 12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GateSettings(min_sessions=1), "min_sessions is 1; give 2 or more"),
        (lambda: GateSettings(num_resamples=9), "num_resamples is 9; give 100"),
        (lambda: GateSettings(min_slice_sessions=0), "min_slice_sessions is 0"),
        (lambda: GateSettings(confidence=0.5), r"confidence is 0\.5"),
        (lambda: GateSettings(confidence=1.0), r"confidence is 1\.0"),
        (lambda: GateSettings(slice_margin=-0.1), r"slice_margin is -0\.1"),
        (lambda: GateSettings(slice_margin=float("nan")), "slice_margin is nan"),
        (
            lambda: SessionReplay(
                session="s", workload="", before=counts(10, 5), after=counts(11, 5)
            ),
            "session 's' has 10 tokens before and 11 after",
        ),
    ],
)
def test_wrong_settings_are_refused(make: Callable[[], object], message: str) -> None:
    """The value and its limit."""
    with pytest.raises(ConfigError, match=message):
        make()
