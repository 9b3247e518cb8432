"""The ablation of memory and a model that drafts, on a small generated trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from model_folders import save_model
from paceline.benchmarks.replay import command
from paceline.middleware.cli import cli
from small_traces import generated_rows, write_rows

Bench = Callable[..., dict[str, Any]]
NAMES = [
    f"{source}-{shape}-0.1"
    for source in ("retrieval", "drafter", "fused")
    for shape in ("chain", "tree")
] + ["vllm-chain-0.1", "vllm-continued-chain-0.1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights: it costs passes and knows nothing."""
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def bench(tmp_path: Path, model: Path) -> Bench:
    """Run the command on a generated source; gives its report."""
    write_rows(tmp_path, "tau-bench", generated_rows("tau-bench", num_episodes=2, seed=0))

    def call(*arguments: str, exit_code: int = 0) -> dict[str, Any]:
        file = tmp_path / "replay.json"
        command_line = ["bench", "replay", str(tmp_path), "--tokenizer", str(model)]
        command_line += ["--state", str(tmp_path / "state"), "--json", str(file), *arguments]
        done = CliRunner().invoke(cli, command_line)
        assert done.exit_code == exit_code, done.output
        report = json.loads(file.read_text()) if file.is_file() else {}
        return {**report, "output": done.output}

    return call


def bounded(model: Path, *more: str) -> list[str]:
    return ["--fusion", str(model), "--requests", "2", "--context-tokens", "96", *more]


def test_memory_model_and_both_get_the_same_requests(bench: Bench, model: Path) -> None:
    """As chains and trees of at most so many nodes; the model's passes are counted and priced."""
    report = bench(*bounded(model, "--nodes", "6", "--pass-cost", "0.5"))
    figures = {n.removeprefix("macro/"): v for n, v in report["figures"].items() if "macro" in n}
    assert report["settings"]["drafters"] == NAMES
    assert report["settings"]["fusion"]["drafter"] == model.name
    assert len({figures[f"{name}/output_tokens"] for name in NAMES}) == 1
    assert figures["retrieval-chain-0.1/requests"] == 2 * 2
    for name in NAMES:
        drafted, passes = (figures[f"{name}/{f}_per_step"] for f in ("drafted", "passes"))
        assert 0 < drafted <= 6
        assert passes == 0 if name.startswith("retrieval") else passes >= 1
        modelled = figures[f"{name}/tokens_per_step"] / (1 + 0.02 * drafted + 0.5 * passes)
        assert figures[f"{name}/speedup_at_0.02"] == pytest.approx(modelled)
    retrieved = figures["retrieval-chain-0.1/tokens_per_step"]
    assert retrieved > 1.2
    assert figures["fused-chain-0.1/tokens_per_step"] > 0.9 * retrieved
    assert "fused-tree-0.1" in report["output"]


def test_finished_parts_are_kept(
    bench: Bench, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run replays nothing; other bounds or another budget are replayed."""
    replayed: list[str] = []
    replay_scope = command.replay_scope

    def counting(drafter: Any, name: str, scope: Any, **more: Any) -> Any:
        replayed.append(name)
        return replay_scope(drafter, name, scope, **more)

    monkeypatch.setattr(command, "replay_scope", counting)
    for _ in range(2):
        bench(*bounded(model))
        assert len(replayed) == 2 * len(NAMES)
    bench(*bounded(model, "--context-tokens", "80"))
    assert len(replayed) == 4 * len(NAMES)
    bench(*bounded(model, "--nodes", "5"))
    assert len(replayed) == 6 * len(NAMES)


def test_what_does_not_fit_together_is_refused(bench: Bench, model: Path, tmp_path: Path) -> None:
    """Drafters beside the ablation, bounds without it, a folder without a model."""
    both = bench(*bounded(model, "--drafter", "none"), exit_code=2)
    assert "leave --drafter out" in both["output"]
    assert "bound --fusion only" in bench("--requests", "2", exit_code=2)["output"]
    missing = bench("--fusion", str(tmp_path / "nothing"), exit_code=1)
    assert "give one with a config.json" in missing["output"]
