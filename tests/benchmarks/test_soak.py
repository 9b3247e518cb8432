"""`paceline bench soak`: a small run of the whole, and what is made of its samples."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
from click.testing import CliRunner

from learning import write_models
from paceline.benchmarks.learn.soak import disk_mib, figures, prompts
from paceline.middleware.cli import cli


def test_growth_is_what_the_last_quarter_holds_beyond_the_second() -> None:
    """Start-up, in the first quarter, does not count."""
    held = [10.0, 30.0, 32.0, 31.0, 33.0, 35.0, 34.0]
    samples = [(20 * i, {"engine_rss": mib}) for i, mib in enumerate(held)]
    found = figures(samples, 120)
    assert found["engine_rss.q1_mib"] == 30.0
    assert found["engine_rss.q2_mib"] == 32.0
    assert found["engine_rss.growth_mib"] == pytest.approx(35.0 - 32.0)


def test_prompts_are_of_kinds_and_sessions_go_on() -> None:
    """Beginnings come again, no prompt does, and a session has a few turns."""
    asked = list(islice(prompts(90), 400))
    assert 60 < len({it.token_ids[:24] for it in asked}) <= 64
    assert len({it.token_ids for it in asked}) == 400
    assert len({it.session for it in asked}) == 100
    assert max(max(it.token_ids) for it in asked) < 90


def test_disk_is_counted_below_all_folders(tmp_path: Path) -> None:
    """Also where there is nothing yet."""
    assert disk_mib(tmp_path / "missing") == 0
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(b"x" * 524_288)
    assert disk_mib(tmp_path) == 0.5


@pytest.mark.model
@pytest.mark.timeout(600)
def test_a_short_soak_runs_through(tmp_path: Path) -> None:
    """Everything is served and measured, and the learner has learned meanwhile."""
    models = write_models(tmp_path / "models")
    file = tmp_path / "report.json"
    arguments = ["bench", "soak", "--target", str(models / "target"), "--layers", "0,3"]
    arguments += ["--requests", "240", "--chunk", "60", "--pause-seconds", "6"]
    arguments += ["--learner-option", "cycle.min_new_tokens=800"]
    done = CliRunner().invoke(cli, [*arguments, "--json", str(file)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())["figures"]
    assert 0 < found["tokens_said"] <= 240 * 12
    assert found["learner.cycles"] >= 1
    for name in ("engine_rss", "learner_rss", "proxy_rss", "redis_used", "learner_disk"):
        assert found[f"{name}.q4_mib"] > 0
