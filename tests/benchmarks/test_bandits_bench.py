"""`paceline bench bandits`: the page's figures, the same from the same seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from paceline.benchmarks.policy.page import PARTS, BanditsBenchSettings
from paceline.benchmarks.policy.simulated_engine import PassTime
from paceline.benchmarks.policy.simulation import CASES, simulate
from paceline.benchmarks.policy.synthetic import SCENARIOS
from paceline.errors import ConfigError
from paceline.middleware.cli import cli
from paceline.policies.bandits import NO_DRAFTS, Arm

PAGE = Path(__file__).parents[2] / "docs" / "bandits.md"


def run(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["bench", "bandits", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_an_engine_is_simulated_and_a_second_run_finds_the_same(tmp_path: Path) -> None:
    """Junk that memory is sure of costs time, and with the bandit less; to the last digit."""
    file = tmp_path / "report.json"
    output = run(
        *("--part", "engines", "--case", "deluded-1", "--turns", "6"),
        *("--engine-seed", "5", "--json", str(file)),
    )
    assert "| the same, one request | 0." in output
    found = json.loads(file.read_text())["figures"]
    again = simulate(CASES["deluded-1"], seed=5, num_turns=6)
    assert found == {f"engines/deluded-1/{way}": value for way, value in again.items()}
    assert again["time"] < 0.9
    assert again["bandit_second_half"] > again["time"]


def test_policies_are_in_the_pages_table(tmp_path: Path) -> None:
    """A row for each, told aside and in brackets without, but for the engine's; and the times."""
    file = tmp_path / "report.json"
    output = run(
        *("--part", "synthetic", "--part", "times", "--seeds", "1", "--timed-rounds", "20"),
        *("--json", str(file)),
    )
    figures = json.loads(file.read_text())["figures"]
    default = figures["synthetic/stationary/default/share_segments"]
    alone = figures["synthetic/stationary/default/share_segments/alone"]
    assert f"| **default** | {default:.3f} ({alone:.3f}) |" in output
    engine = figures["synthetic/stationary/engine/share_segments"]
    assert f"| as engines run it | {engine:.3f} |" in output
    assert "synthetic/stationary/engine/share_segments/alone" not in figures
    assert figures["times/default/contexts_1_median_us"] > 0


def test_a_pass_takes_its_parts() -> None:
    """Fixed, by request and token, the step with drafts only; noise about that; no negative one."""
    from random import Random

    rng = Random(1)  # noqa: S311  test data
    time = PassTime(fixed=1.0, request=0.1, token=0.01, step=5.0)
    assert time.seconds(2, 2, rng) == pytest.approx(1.22)
    assert time.seconds(2, 6, rng) == pytest.approx(6.26)
    noisy = PassTime(fixed=1.0, request=0.0, token=0.0, noise=0.1)
    taken = [noisy.seconds(1, 1, rng) for _ in range(400)]
    assert 0.9 <= min(taken) < 0.92
    assert 1.08 < max(taken) <= 1.1
    with pytest.raises(ConfigError, match="noise 1"):
        PassTime(noise=1.0)
    with pytest.raises(ConfigError, match="a part of -1"):
        PassTime(token=-1.0)


def test_an_engine_tells_of_memory_beside_a_model() -> None:
    """A model's draft tells what memory's as long would have brought, and shorter ones of both."""
    scenario = SCENARIOS["stationary"](np.random.default_rng(1))
    told = scenario.told_as_by_engines()
    both, memory = Arm("both", 8), Arm("memory", 8)
    for before, request in zip(scenario.requests[:9], told.requests, strict=False):
        assert request.outcomes == before.outcomes
        assert memory not in before.aside[both]
        assert request.aside[both][memory] == request.outcomes[scenario.arms.index(memory)]
        shorter = {NO_DRAFTS, *(Arm("memory", cap) for cap in (2, 4, 8)), Arm("both", 4)}
        assert set(request.aside[both]) == shorter
        assert request.aside[memory] == before.aside[memory]


def test_what_cannot_be_run_is_refused() -> None:
    """Recorded rewards without traces, half a turn."""
    with pytest.raises(ConfigError, match="no traces are named"):
        BanditsBenchSettings(parts=PARTS)
    with pytest.raises(ConfigError, match="--turns is 1"):
        BanditsBenchSettings(parts=("engines",), num_turns=1)


def test_the_page_has_a_row_for_each_case() -> None:
    """And names the command that printed them."""
    text = PAGE.read_text(encoding="utf-8")
    assert "paceline bench bandits" in text
    for case in CASES.values():
        assert f"| {case.title} | " in text
