"""`paceline bench index` on a small text: every figure is there, and wrong text is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from paceline.benchmarks.index import index
from paceline.benchmarks.index_text import Text
from paceline.errors import ConfigError


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    words = [rng.integers(0, 500, 12).astype(np.int32) for _ in range(300)]
    text = np.concatenate([words[i] for i in rng.integers(0, 300, 30_000)])
    text[rng.integers(0, len(text), 200)] = -1
    file = tmp_path_factory.mktemp("text") / "tokens.npy"
    np.save(file, text)
    return file


def test_every_figure_is_measured(tokens: Path, tmp_path: Path) -> None:
    """Costs, quiet and beside writers, come out as finite positive numbers in one report."""
    report = tmp_path / "index.json"
    options = ["--sizes", "2e4", "--rounds", "1", "--calls", "50", "--no-arctic"]
    result = CliRunner().invoke(index, ["--tokens", str(tokens), *options, "--json", str(report)])
    assert result.exit_code == 0, result.output
    figures = json.loads(report.read_text())["figures"]
    wanted = [
        "insert_ns_per_token",
        "counted_bytes_per_token",
        "propose_unseen_us_p99",
        "propose_held_us_mean",
        "start_ms",
        "finish_ms",
        "batch_256_ms",
        "beside_append_us_p99",
        "beside_begin_p99_over_quiet",
    ]
    for name in wanted:
        assert figures[f"20000.paceline.{name}"] > 0
        assert math.isfinite(figures[f"20000.paceline.{name}"])
    assert figures["20000.paceline.start_tokens"] == 131_072


def test_sequences_are_documents_and_long_ones_are_cut() -> None:
    """Borders are no tokens; nothing is lost but them."""
    text = Text(np.array([1, 2, -1, -1, *range(5000)], np.int32))
    sequences = [sequence.tolist() for sequence in text.sequences()]
    assert sequences == [[1, 2], list(range(4096)), list(range(4096, 5000))]
    assert text.stretch(0, 4).tolist() == [1, 2, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give the text: --tokens"),
        (["--traces", "there"], "give the text: --tokens"),
        (["--tokens", "missing.npy"], "missing.npy is no .npy file of token ids"),
        (["--tokens", "TEXT", "--sizes", "1e9"], "too few to hold 1000000000"),
        (["--tokens", "TEXT", "--sizes", "many"], "--sizes is 'many'; give numbers"),
        (["--tokens", "TEXT", "--rounds", "0"], "--rounds is 0; give at least 1"),
    ],
)
def test_wrong_text_and_sizes_are_refused(tokens: Path, arguments: list[str], says: str) -> None:
    """The message names what is wrong and what to give."""
    named = [str(tokens) if argument == "TEXT" else argument for argument in arguments]
    result = CliRunner().invoke(index, [*named, "--no-arctic"])
    assert isinstance(result.exception, ConfigError)
    assert says in str(result.exception)
