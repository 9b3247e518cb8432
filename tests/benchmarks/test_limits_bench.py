"""`paceline bench limits` runs, and its simulation tells the rules apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from paceline.benchmarks.limits import LimitsBenchSettings, run_limits_bench
from paceline.benchmarks.limits_simulation import Work, simulate
from paceline.middleware.cli import cli


def test_a_small_run_measures_every_figure() -> None:
    """The settings are far too short for windows of a minute, so only that they are there."""
    settings = LimitsBenchSettings(
        seconds=4.0,
        requests_per_minute=30,
        tokens_per_minute=3_000,
        askers=4,
        mean_read=20,
        mean_said=20,
        probes=20,
    )
    report = json.loads(run_limits_bench(settings).as_json())
    figures = report["figures"]
    assert report["bench"] == "limits"
    assert figures["redis_calls_per_request"] == 2
    assert figures["tokens_refused"] > 0
    assert {"added_p50_ms", "added_p99_ms", "requests_mean_minute"} <= figures.keys()


def test_the_rule_in_use_keeps_the_mean_and_swings_least() -> None:
    """Against charging at the end, setting aside, and charging the most that may be said."""
    found = {rule: simulate(rule, Work(), minutes=14) for rule in ("end", "most", "mean", "paced")}
    least, mean, most = found["paced"]
    assert mean == pytest.approx(1, abs=0.01)
    assert 0.97 < least < most < 1.03
    for rule in ("end", "most", "mean"):
        assert found[rule][2] - found[rule][0] > most - least


def test_too_short_a_run_is_refused(tmp_path: Path) -> None:
    """Nothing is started and nothing is written."""
    target = tmp_path / "out.json"
    done = CliRunner().invoke(cli, ["bench", "limits", "--seconds", "100", "--json", str(target)])
    assert done.exit_code == 1
    assert "give at least 180" in done.output
    assert not target.exists()
