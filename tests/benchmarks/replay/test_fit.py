"""`paceline bench fit` on small generated traces: what it learns, from what, and what it writes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from paceline.benchmarks.replay.drafters.paceline import PacelineDrafter
from paceline.benchmarks.replay.episodes import is_reporting
from paceline.benchmarks.replay.fit import blank_state, knot_logits, prior_of, render
from paceline.caches import DraftIndex
from paceline.caches._native import calibration_shape, fitted_weights, initial_calibration
from paceline.middleware.cli import cli
from small_traces import generated_rows, save_tokenizer, write_rows

Rows = list[dict[str, Any]]
Fit = Callable[[Rows], str]
"""The header, or what was said where there is none."""

NUM_WEIGHTS, _, _, NUM_CONTEXTS, NUM_KNOTS = calibration_shape()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def fit(tmp_path: Path, tokenizer: Path) -> Fit:
    """Run the command on these rows."""

    def call(rows: Rows) -> str:
        file, header = write_rows(tmp_path, "tau-bench", rows), tmp_path / "prior.hpp"
        command_line = ["bench", "fit", str(file), "--tokenizer", str(tokenizer), "--header"]
        command_line += [str(header), "--state", str(tmp_path / "state")]
        done = CliRunner().invoke(cli, command_line, catch_exceptions=False)
        return header.read_text() if done.exit_code == 0 else done.output

    return call


def arrays(header: str) -> dict[str, list[float]]:
    found = re.findall(r"std::array<float, (\d+)> (\w+)\{\{(.*?)\}\};", header, re.DOTALL)
    values = {
        name: [float(v) for v in re.findall(r"(-?\d+\.\d+)f", body)] for _, name, body in found
    }
    assert [len(values[name]) for _, name, _ in found] == [int(size) for size, _, _ in found]
    return values


def test_the_header_has_a_number_for_everything_learned(fit: Fit) -> None:
    """What the native core is built with fits its tables, and longer matches weigh more."""
    header = fit(generated_rows("tau-bench", num_episodes=12, seed=3))
    values = arrays(header)
    assert {name: len(column) for name, column in values.items()} == {
        "kWeights": len(fitted_weights()),
        "kOffsets": NUM_CONTEXTS,
        "kSlopes": NUM_CONTEXTS,
    }
    by_length = np.array(values["kWeights"][:15])  # read in the request's own context
    assert by_length[8:].max() > by_length[1]
    assert max(map(len, header.splitlines())) <= 120


def test_only_the_tuning_half_is_learned_from(fit: Fit) -> None:
    """What the episodes that figures are reported on say makes no difference; the others' does."""
    rows = generated_rows("tau-bench", num_episodes=12, seed=3)
    other = generated_rows("tau-bench", num_episodes=12, seed=4)
    reporting = [is_reporting(row["episode_id"]) for row in rows]
    assert 0 < sum(reporting) < len(rows)
    fitted = fit(rows)
    swapped = [b if kept_out else a for a, b, kept_out in zip(rows, other, reporting, strict=True)]
    assert fit(swapped) == fitted
    assert fit(other) != fitted


def test_traces_without_a_tuning_half_are_refused(fit: Fit) -> None:
    """Nothing is fitted to the half that is reported on."""
    rows = generated_rows("tau-bench", num_episodes=12, seed=3)
    said = fit([row for row in rows if is_reporting(row["episode_id"])])
    assert "no recorded reply belongs to the tuning half" in said


def test_the_map_becomes_a_line_in_logits() -> None:
    """Where enough was seen the line is the one that frequencies lie on, elsewhere the identity."""
    logits = knot_logits(NUM_KNOTS)
    trials = np.full((NUM_CONTEXTS, NUM_KNOTS), 8.0)
    hits = trials / (1 + np.exp(-logits))
    trials[3] = 1000.0
    hits[3] = 1000.0 / (1 + np.exp(-(0.5 + 0.75 * logits)))
    state = np.concatenate([np.zeros(NUM_WEIGHTS), trials.ravel(), hits.ravel()])
    prior = prior_of(state)
    assert (prior.offsets[3], prior.slopes[3]) == pytest.approx((0.5, 0.75), abs=0.02)
    others = np.arange(NUM_CONTEXTS) != 3
    np.testing.assert_allclose(prior.offsets[others], 0.0)
    np.testing.assert_allclose(prior.slopes[others], 1.0)


def test_a_fresh_memory_starts_from_what_was_fitted() -> None:
    """The core's tables come from the header that this program writes: layout and all."""
    fitted = prior_of(initial_calibration().astype(np.float64))
    again = arrays(render(fitted))
    np.testing.assert_allclose(
        again["kWeights"], initial_calibration()[fitted_weights()], atol=1e-6
    )


def test_learning_goes_on_where_it_was_left() -> None:
    """A calibration that is carried to another index drafts there as it did."""
    scope = "tau-bench/m"
    drafter, other = (PacelineDrafter(min_probability=0.1) for _ in range(2))
    drafter.go_on_from(scope, blank_state())
    ids = np.arange(40, dtype=np.int32)
    drafter.start(1, "", scope, np.concatenate([ids, ids[:8]]))
    for token in range(8, 30):
        drafter.propose(1, 4)
        drafter.commit(1, [token])
    assert not np.array_equal(drafter.learned(scope), blank_state())
    other.go_on_from(scope, drafter.learned(scope))
    np.testing.assert_array_equal(other.learned(scope), drafter.learned(scope))


@pytest.mark.parametrize("spoil", ["size", "nan", "hits"])
def test_what_is_no_calibration_is_refused(spoil: str) -> None:
    """A state of another size, with no numbers or with more hits than trials changes nothing."""
    index = DraftIndex()
    reads = np.array([index.scope("s")], np.int32)
    state = blank_state()
    if spoil == "size":
        state = state[:-1]
    else:
        state[0 if spoil == "nan" else -1] = np.nan if spoil == "nan" else 9.0
    before = index.calibration(read_scopes=reads)
    with pytest.raises(ValueError, match=f"state is of {len(state)} values; give what calibration"):
        index.set_calibration(read_scopes=reads, state=state)
    np.testing.assert_array_equal(index.calibration(read_scopes=reads), before)
