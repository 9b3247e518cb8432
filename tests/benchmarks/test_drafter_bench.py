"""`paceline bench drafter` on small models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from paceline.benchmarks.drafter import DrafterBenchSettings, drafter
from paceline.errors import ConfigError
from small_chats import write_target


def test_every_model_has_its_passes_measured(tmp_path: Path) -> None:
    """Milliseconds of each behind each context, and every drafter's share of the target's."""
    for name, layers in (("big", 4), ("one", 1), ("two", 2)):
        write_target(tmp_path / name, num_hidden_layers=layers)
    report = tmp_path / "report.json"
    words = ["--target", str(tmp_path / "big"), "--context", "8", "--context", "40"]
    words += ["--drafter", str(tmp_path / "one"), "--drafter", str(tmp_path / "two")]
    done = CliRunner().invoke(
        drafter, [*words, "--rounds", "3", "--threads", "1", "--json", str(report)]
    )
    assert done.exit_code == 0, done.output
    figures = json.loads(report.read_text(encoding="utf-8"))["figures"]
    for context in (8, 40):
        for name in ("one", "two"):
            ours, whole = (figures[f"{who}.{context}.ms"] for who in (name, "target"))
            assert figures[f"{name}.{context}.share"] == pytest.approx(ours / whole)
    assert len(figures) == 10


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    """Folders of one name, and contexts that a model cannot read."""
    with pytest.raises(ConfigError, match="give folders of different names"):
        DrafterBenchSettings(target="t", drafters=("a/d", "b/d"))
    with pytest.raises(ConfigError, match="--threads is 0"):
        DrafterBenchSettings(target="t", drafters=("d",), threads=0)
    from paceline.benchmarks.drafter import run_drafter_bench

    write_target(tmp_path / "m")
    settings = DrafterBenchSettings(
        target=str(tmp_path / "m"), drafters=(str(tmp_path / "m"),), contexts=(250,), threads=1
    )
    with pytest.raises(ConfigError, match="are more than the 256"):
        run_drafter_bench(settings)
