"""`paceline bench fusion`: every figure is there, of drafts that are drafts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from paceline.benchmarks.fusion import FusionBenchSettings, random_draft
from paceline.errors import ConfigError
from paceline.middleware.cli import cli


def test_every_figure_is_measured(tmp_path: Path) -> None:
    """Chains and trees, several batches, and the plain Python beside them."""
    report = tmp_path / "fusion.json"
    command = ["bench", "fusion", "--nodes", "6", "--rounds", "1", "--json", str(report)]
    done = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    figures = json.loads(report.read_text())["figures"]
    wanted = [f"batch_{batch}/{what}_us" for batch in (1, 16, 256) for what in ("fuse", "learn")]
    for shape in ("chain", "tree"):
        for name in (*wanted, "plain_us"):
            assert 0 < figures[f"{shape}/{name}"] < math.inf


def test_drafts_are_such_as_an_engine_makes() -> None:
    """As many nodes as wanted, a place behind each, probabilities that can be."""
    settings = FusionBenchSettings(nodes=40, top=8)
    retrieved, view = random_draft(np.random.default_rng(1), settings)
    assert len(retrieved.nodes) == 40
    assert view.paths() == [(), *retrieved.paths()]
    for _, _, top in view.places:
        assert len({token for token, _ in top}) == 8
        assert sum(prob for _, prob in top) <= 1.0 + 1e-6
        assert [p for _, p in top] == sorted((p for _, p in top), reverse=True)


def test_nothing_cannot_be_fused() -> None:
    """The value, the limit."""
    with pytest.raises(ConfigError, match="--nodes is 0; give at least 1"):
        FusionBenchSettings(nodes=0)
