"""The whole of `paceline bench cells` and `bench drift` on real engines beside each other."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from cut_models import cut_model
from paceline.middleware.cli import cli
from recorded import write_trace

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

EPISODE = [
    {"role": "system", "content": "You repeat what you are told."},
    {"role": "user", "content": "Say one two three four five six seven eight, five times."},
    {"role": "assistant", "content": "one two three four five six seven eight"},
]

OTHER = [
    {"role": "user", "content": "Count from nine to one, and then from one to nine."},
    {"role": "assistant", "content": "nine eight seven six five four three two one"},
]


TWO_CORES = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="two engines need a core each"
)


@TWO_CORES
def test_memory_and_a_fixed_number_run_beside_an_engine_without_drafts(tmp_path: Path) -> None:
    """Replies are the same in every cell, and what was drafted is counted behind the warm-up."""
    write_trace(tmp_path, "s", *[EPISODE] * 16)
    file = tmp_path / "report.json"
    arguments = ["bench", "cells", str(tmp_path), "--source", "s", "--json", str(file)]
    arguments += ["--in-flight", "1", "--in-flight", "2", "--prompts-factor", "0.3"]
    done = CliRunner().invoke(cli, [*arguments, "--way", "fixed-4"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    report = json.loads(file.read_text())
    found = report["figures"]
    for cell in ("s.c1", "s.c2"):
        assert found[f"fixed-4.{cell}.identical"] == 1
        assert found[f"fixed-4.{cell}.off_tokens_per_second"] > 0
        # the same question again and again: memory knows the reply
        assert found[f"fixed-4.{cell}.accepted_per_drafted"] > 0.3
    assert "fixed-4.mean_times_off" in found
    assert report["settings"]["cells"]["s.c1"] == [5, 1]


@TWO_CORES
def test_fused_drafts_run_with_the_bandit_above(tmp_path: Path, target_folder: Path) -> None:
    """A target and a drafter that is cut like it: replies are the same, and drafts are accepted."""
    write_trace(tmp_path, "s", *[EPISODE] * 16)
    models = tmp_path / "models"
    target = cut_model(target_folder, models / "target", [0, 29])
    file = tmp_path / "report.json"
    arguments = ["bench", "cells", str(tmp_path), "--source", "s", "--json", str(file)]
    arguments += ["--in-flight", "2", "--prompts-factor", "0.3", "--way", "fused-bandit"]
    arguments += ["--model", str(target), "--drafter", str(target), "--output-tokens", "32"]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    report = json.loads(file.read_text())
    found = report["figures"]
    assert report["settings"]["ways"] == ["fused-bandit"]
    assert found["fused-bandit.s.c2.identical"] == 1
    assert found["fused-bandit.s.c2.accepted_per_drafted"] > 0.3


@TWO_CORES
def test_a_turn_is_seen_by_engines_that_went_through_what_was_before(
    tmp_path: Path, target_folder: Path
) -> None:
    """One tenant asks one kind, then another: replies stay the same, all that ended is counted."""
    write_trace(tmp_path, "s", *[EPISODE] * 6)
    write_trace(tmp_path, "t", *[OTHER] * 12)
    target = cut_model(target_folder, tmp_path / "models" / "target", [0, 29])
    file = tmp_path / "report.json"
    arguments = ["bench", "drift", str(tmp_path), "s", "t", "--way", "memory-bandit"]
    arguments += ["--in-flight", "2", "--before", "4", "--after", "12", "--within", "4"]
    arguments += ["--window", "2", "--model", str(target), "--output-tokens", "24"]
    done = CliRunner().invoke(cli, [*arguments, "--json", str(file)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())["figures"]
    assert found["memory-bandit.identical"] == 1
    # the first to be counted was taken up beside another, the last one is not waited for
    assert found["after.requests"] in (10, 11, 12)
    assert found["rest.requests"] == found["after.requests"] - 4
    assert found["memory-bandit.after.drafted_per_token"] > 0
    assert found["off.after.drafted_per_token"] == 0
    assert found["off.is_best_after"] == 1
    assert found["memory-bandit.rest.of_best"] == found["memory-bandit.rest.times_off"]
    assert "memory-bandit: " in done.output
