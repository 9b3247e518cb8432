"""`paceline bench corpus` on a small text."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from paceline.benchmarks.corpus import at_equal_drafted, corpus, interpolate
from paceline.errors import ConfigError


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents that are made of the same phrases, which each of them orders anew."""
    rng = np.random.default_rng(0)
    phrases = [rng.integers(0, 2000, 12).astype(np.int32) for _ in range(400)]
    border = np.array([-1], np.int32)
    documents = [
        np.concatenate([*(phrases[i] for i in rng.integers(0, 400, 40)), border])
        for _ in range(700)
    ]
    file = tmp_path_factory.mktemp("text") / "tokens.npy"
    np.save(file, np.concatenate(documents))
    return file


def test_a_corpus_is_worth_its_tokens(tokens: Path, tmp_path: Path) -> None:
    """More is accepted with the text as a corpus than without it, and as much as from a log."""
    report = tmp_path / "corpus.json"
    options = ["--size", "40000", "--documents", "12", "--no-arctic", "--min-probability", "0.2"]
    result = CliRunner().invoke(
        corpus, ["--tokens", str(tokens), *options, "--json", str(report)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    figures = json.loads(report.read_text())["figures"]
    steps = {
        kind: figures[f"{kind}-0.2/tokens_per_step"] for kind in ("corpus", "tree", "log", "alone")
    }
    assert steps["corpus"] > 2 * steps["alone"]
    assert steps["corpus"] > 0.9 * steps["log"]
    assert steps["tree"] > 0.95 * steps["corpus"]
    assert figures["documents"] == 12
    assert figures["corpus-0.2/propose_mean_us"] > 0


def test_short_text_is_refused(tokens: Path) -> None:
    """Documents that no prompt fits in are named, with what to do."""
    options = ["--tokens", str(tokens), "--size", "40000", "--prompt-tokens", "4000"]
    with pytest.raises(ConfigError, match="--prompt-tokens"):
        CliRunner().invoke(corpus, [*options, "--no-arctic"], catch_exceptions=False)


def test_drafters_are_compared_at_equal_drafted_tokens() -> None:
    """Between two thresholds ours is read off the line; outside of them there is no figure."""
    points = [(4.0, 2.0), (2.0, 1.0)]
    assert interpolate(points, 3.0) == 1.5
    assert math.isnan(interpolate(points, 5.0))
    assert math.isnan(interpolate([], 1.0))
    frontiers = {
        "corpus-0.1": {"drafted_per_step": 4.0, "tokens_per_step": 2.0},
        "corpus-0.2": {"drafted_per_step": 2.0, "tokens_per_step": 1.0},
        "arctic-24x1": {"drafted_per_step": 3.0, "tokens_per_step": 1.2},
    }
    ratios = at_equal_drafted(frontiers)
    assert ratios["corpus_over_arctic-24x1"] == pytest.approx(1.25)
    assert math.isnan(ratios["log_over_arctic-24x1"])
