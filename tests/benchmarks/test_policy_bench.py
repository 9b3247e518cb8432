"""`paceline bench policy`: rewards that are what they say, scores that mean what they say."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from paceline.benchmarks.policy.command import PolicyBenchSettings
from paceline.benchmarks.policy.contest import CONTESTANTS, contest, play, score
from paceline.benchmarks.policy.recording import Replayed, RoundTime
from paceline.benchmarks.policy.rewards import RewardRow, read_rows, scenario_of, write_rows
from paceline.benchmarks.policy.scenario import Request, Scenario
from paceline.benchmarks.policy.synthetic import ARMS, LOADED, REPEATING, SCENARIOS, seconds_a_token
from paceline.errors import ConfigError
from paceline.middleware.cli import cli
from paceline.policies.bandits import (
    NO_DRAFTS,
    Arm,
    Outcome,
    Policy,
    PolicyContext,
    Steady,
    ThompsonSampling,
)
from small_traces import generated_rows, save_tokenizer
from small_traces import write_rows as write_trace

HERE = PolicyContext.of(key="k")
TWO = (NO_DRAFTS, Arm("memory", 4))


class Always(Steady):
    """Pulls one arm."""

    def __init__(self, arms: tuple[Arm, ...], arm: Arm) -> None:
        super().__init__(ThompsonSampling(arms, rng=random.Random(0)))  # noqa: S311  test data
        self._arm = arm

    def pull(self, context: PolicyContext) -> Arm:
        return self._arm


def always(arm: Arm) -> Callable[[tuple[Arm, ...], random.Random], Policy]:
    return lambda arms, _rng: Always(arms, arm)


def two_halves() -> Scenario:
    """Drafts take half the time for 60 requests, and twice the time for as many more."""
    requests = [
        Request(HERE, (Outcome(64, 64.0, 64), Outcome(64, drafted, 32)))
        for drafted in [32.0] * 60 + [128.0] * 60
    ]
    return Scenario("halves", TWO, tuple(requests), (0, 60))


def test_a_fixed_arm_scores_what_it_is_worth() -> None:
    """Shares of the best fixed arm, of the best by segment and of none, regrets, and never back."""
    scenario = two_halves()
    (none,) = contest(always(NO_DRAFTS), [scenario])
    assert none.share_fixed == pytest.approx(1.0)
    assert none.share_none == pytest.approx(1.0)
    assert none.share_segments == pytest.approx(96 / 128)
    assert none.regret_segments == pytest.approx(25.0)
    assert (none.back, none.num_switches) == ((0,), 0.0)
    (drafted,) = contest(always(TWO[1]), [scenario])
    assert drafted.share_fixed == pytest.approx(128 / 160)
    assert drafted.regret_fixed == pytest.approx(25.0)
    assert drafted.back == (60,)


def test_a_request_is_answered_in_parts() -> None:
    """As many rounds at a time as an arm stays for; parts sum to whole requests."""
    scenario = two_halves()
    for in_flight in (1, 7):
        played = play(
            CONTESTANTS["default"](TWO, random.Random(0)),  # noqa: S311  test data
            scenario,
            in_flight=in_flight,
        )
        np.testing.assert_allclose(played.shares.sum(axis=1), 1.0)
        assert 120 * 2 <= played.num_pulls <= 120 * 4
        assert score(scenario, played).share_none > 1.0


def test_requests_until_back_are_counted_from_the_change() -> None:
    """A policy that changes its arm ten requests after the rewards did is back after ten."""

    class Late(Always):
        num_updates = 0

        def update(self, *arguments: Any) -> None:
            self.num_updates += 1

        def pull(self, context: PolicyContext) -> Arm:
            # two parts a request with drafts, four without
            return TWO[1] if self.num_updates < 2 * 70 else NO_DRAFTS

    scenario = two_halves()
    played = play(Late(TWO, TWO[1]), scenario)
    assert score(scenario, played).back == (10,)


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenarios_are_whole(name: str) -> None:
    """Every outcome is usable, what is expected is near what happens, and seeds repeat it."""
    made = SCENARIOS[name](np.random.default_rng(3))
    again = SCENARIOS[name](np.random.default_rng(3))
    assert made.requests == again.requests
    assert made.requests != SCENARIOS[name](np.random.default_rng(4)).requests
    assert made.segments[0] == 0
    assert all(outcome.is_usable for each in made.requests for outcome in each.outcomes)
    tokens = sum(each.outcomes[0].num_tokens for each in made.requests)
    happened = made.seconds().sum(axis=0) / tokens
    np.testing.assert_allclose(happened, made.seconds_a_token().mean(axis=0), rtol=0.2)


def test_kinds_are_what_they_are_called() -> None:
    """Where all repeats the longest drafts are best, under load none are."""
    best = {
        kind: min(ARMS, key=lambda arm: seconds_a_token(kind, arm)) for kind in (REPEATING, LOADED)
    }
    assert best == {REPEATING: Arm("memory", 16), LOADED: NO_DRAFTS}


def test_rewards_come_back_as_they_went(tmp_path: Path) -> None:
    """Written, read and made a scenario: contexts, outcomes, segments and what is known aside."""
    rows = [
        RewardRow(
            key="tenant:a",
            workload="w",
            batch=5,
            tokens=3000,
            segment=segment,
            half="tuning",
            arms={"none": (64, 2.0, 64), "memory-4": (64, 1.0, 20)},
            aside={"memory-4": {"none": (64, 2.0, 64)}},
        )
        for segment in ("a", "a", "b")
    ]
    file = tmp_path / "deep" / "rewards.jsonl"
    write_rows(rows, file)
    assert list(read_rows(file)) == rows
    scenario = scenario_of("s", rows)
    assert (scenario.arms, scenario.segments) == (TWO, (0, 2))
    assert scenario.requests[0].context == PolicyContext("tenant:a", "w", 4, 2048)
    assert scenario.requests[0].aside == {TWO[1]: {NO_DRAFTS: Outcome(64, 2.0, 64)}}
    assert scenario_of("s", rows, named=False).requests[0].context.workload == ""
    np.testing.assert_allclose(scenario.seconds_a_token(), [[2 / 64, 1 / 64]] * 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{}", "line 1: Object missing required field"),
        ("not json", "line 1"),
        ('"arms": {"memory-4": [1, 1, 1]}', "'none' has no outcome"),
        ('"arms": {"none": [1, 0, 1]}', "'none' has no outcome"),
    ],
)
def test_lines_that_are_no_rewards_are_named(tmp_path: Path, line: str, message: str) -> None:
    """File, line, and what is missing."""
    if line.startswith('"arms"'):
        line = f'{{"key": "k", "workload": "", "batch": 1, "tokens": 1, "segment": "s", {line}}}'
    file = tmp_path / "rewards.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(ConfigError, match=message):
        list(read_rows(file))


def test_rewards_that_make_no_run_are_refused(tmp_path: Path) -> None:
    """None at all, a missing file, arms that change."""
    with pytest.raises(ConfigError, match="has no rewards"):
        scenario_of("s", [])
    with pytest.raises(ConfigError, match="cannot be read"):
        list(read_rows(tmp_path / "missing"))
    row = RewardRow(key="k", workload="", batch=1, tokens=1, segment="s", arms={"none": (1, 1, 1)})
    other = msgspec.structs.replace(row, arms={"none": (1, 1, 1), "memory-4": (1, 1, 1)})
    with pytest.raises(ConfigError, match="request 1 has arms"):
        scenario_of("s", [row, other])


def test_a_round_takes_its_parts() -> None:
    """Fixed, by request and by token, drafted ones of the whole batch; and a shorter cap's."""
    time = RoundTime(fixed_seconds=1.0, request_seconds=0.1, token_seconds=0.01, batch=2)
    seen = Replayed(drafted=[8, 8, 0], accepted=[8, 3, 0])
    assert seen.outcome(time) == pytest.approx((14, 3 * 1.22 + 16 * 0.02, 3))
    # nine tokens in three rounds of two drafted, four in two of them, one in one
    assert seen.aside(time, 2) == pytest.approx((14, 6 * 1.22 + 10 * 0.02, 6))
    assert seen.aside(time, 0) == pytest.approx((14, 14 * 1.22, 14))
    with pytest.raises(ConfigError, match="--batch is 0"):
        RoundTime(fixed_seconds=1.0, request_seconds=0.1, token_seconds=0.01, batch=0)
    with pytest.raises(ConfigError, match="give none below 0"):
        RoundTime(fixed_seconds=-1.0, request_seconds=0.1, token_seconds=0.01, batch=1)


def test_traces_become_rewards_that_are_played(tmp_path: Path) -> None:
    """From recorded agents to a report: every figure is there and is a number."""
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    trace = write_trace(tmp_path, "tau-bench", generated_rows("tau-bench", num_episodes=8, seed=3))
    rewards, report = tmp_path / "rewards.jsonl", tmp_path / "report.json"
    command = ["bench", "policy", "--record", str(trace), "--to", str(rewards)]
    command += ["--tokenizer", str(tokenizer), "--state", str(tmp_path / "state"), "--batch", "2"]
    done = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    rows = list(read_rows(rewards))
    assert len(rows) == 8 * 3
    for row in rows:
        tokens = {triple[0] for triple in row.arms.values()}
        assert len(tokens) == 1, "an arm changes how long a reply takes, not the reply"
        assert row.arms["none"][2] == row.arms["none"][0]
        assert row.arms["memory-16"][2] <= row.arms["memory-2"][2] <= row.arms["none"][2]
        assert set(row.aside["memory-16"]) == {"none", "memory-2", "memory-4", "memory-8"}
        assert row.aside["memory-16"]["none"][2] == row.arms["none"][2]
    command = ["bench", "policy", "--rewards", str(rewards), "--scenario", "none", "--seeds", "2"]
    command += ["--policy", "default", "--timed-rounds", "20", "--json", str(report)]
    done = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    figures = json.loads(report.read_text())["figures"]
    for kind in ("named", "unnamed"):
        assert 0.5 < figures[f"rewards-{kind}/default/share_segments"] <= 1.0 + 1e-9
        assert figures[f"rewards-{kind}/default/share_none"] > 0.5
    for contexts in (1, 4, 32):
        assert 0 < figures[f"time/default/contexts_{contexts}_median_us"] < math.inf
    assert "rewards-named" in done.output


def test_synthetic_rewards_are_played(tmp_path: Path) -> None:
    """Every policy has every figure, with a change how soon it was back."""
    report = tmp_path / "report.json"
    command = ["bench", "policy", "--scenario", "abrupt", "--seeds", "1", "--timed-rounds", "0"]
    command += ["--in-flight", "4", "--no-aside", "--json", str(report)]
    done = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    figures = json.loads(report.read_text())["figures"]
    for policy in CONTESTANTS:
        assert 0.3 < figures[f"abrupt/{policy}/share_segments"] <= 1.0
        assert 0 <= figures[f"abrupt/{policy}/back_median"] <= 150
        assert 0 <= figures[f"abrupt/{policy}/back_within_50"] <= 1
    assert not [name for name in figures if name.startswith("time/")]


def test_the_default_comes_back_after_a_change() -> None:
    """Within 50 requests at 95 % of the new best arm's rate, mostly; without its CUSUM, mostly not.

    It is not so always: a request's luck is most of what a single one tells.
    """
    runs = [SCENARIOS["abrupt"](np.random.default_rng(seed)) for seed in range(4)]
    within = {}
    for name in ("default", "ucb-no-change"):
        back = [requests for each in contest(CONTESTANTS[name], runs) for requests in each.back]
        within[name] = np.mean(np.array(back) <= 50)
    assert within["default"] >= 0.75
    assert within["ucb-no-change"] < 0.5


def test_bad_settings_are_named() -> None:
    """The value, the limit; and halves of a pair of options."""
    with pytest.raises(ConfigError, match="--seeds is 0"):
        PolicyBenchSettings(seeds=0)
    done = CliRunner().invoke(cli, ["bench", "policy", "--to", "x"])
    assert done.exit_code == 2
    assert "give both" in done.output
