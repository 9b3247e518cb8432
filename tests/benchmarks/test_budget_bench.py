"""`paceline bench budget`: every figure is there, and both ways to cut agree."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from paceline.adapters.verify_budget import VerifyBudget
from paceline.benchmarks.budget import (
    FIXED,
    REQUEST,
    TOKEN,
    BudgetBenchSettings,
    heap_cut,
    random_chains,
)
from paceline.errors import ConfigError
from paceline.middleware.cli import cli


def test_every_figure_is_measured(tmp_path: Path) -> None:
    """Cutting, choosing and learning, several batches, and the heap beside them."""
    report = tmp_path / "budget.json"
    command = [
        "bench",
        "budget",
        "--tokens",
        "4",
        "--rounds",
        "1",
        "--arm-rounds",
        "32",
        "--json",
        str(report),
    ]
    done = CliRunner().invoke(cli, command, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    figures = json.loads(report.read_text())["figures"]
    for batch in (1, 32, 256):
        for what in ("cut_us", "learn_us", "gate_us", "heap_cut_us", "heap_over_cut"):
            assert 0 < figures[f"batch_{batch}/{what}"] < math.inf
        for what in ("one", "each", "without"):
            mean, most = (figures[f"batch_{batch}/arms_{what}{end}"] for end in ("_us", "_most_us"))
            assert 0 < mean < most < math.inf


def test_the_heap_cuts_as_the_engine_does() -> None:
    """Where costs are known exactly, the two keep the same tokens."""
    rng = np.random.default_rng(3)
    for size in (1, 7, 40):
        drafts = random_chains(rng, size, 16)
        budget = VerifyBudget()
        for i in range(400):
            tokens = size + i % 50
            budget.target.learn(size, tokens, FIXED + REQUEST * size + TOKEN * tokens)
        budget.begin(size)
        kept = budget.cut(drafts)
        assert np.abs(kept - np.array(heap_cut(drafts, size))).sum() <= 1  # at the very border
        assert 0 < kept.sum() < len(drafts.prob)


def test_nothing_cannot_be_chosen_from() -> None:
    """The value, the limit."""
    with pytest.raises(ConfigError, match="--tokens is 0; give at least 1"):
        BudgetBenchSettings(tokens=0)
