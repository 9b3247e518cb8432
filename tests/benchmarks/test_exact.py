"""`paceline bench exact` and `bench coupling` on small models of random weights."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from model_folders import save_model
from paceline.middleware.cli import cli
from small_traces import generated_rows, write_rows

Bench = Callable[..., dict[str, Any]]
MODES = ("off", "memory", "memory-tree", "drafter", "drafter-tree", "fused", "fused-tree")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A target and a drafter that is similar."""
    folder = tmp_path_factory.mktemp("models")
    return save_model(folder / "target"), save_model(folder / "drafter", noise=0.03)


@pytest.fixture
def bench(tmp_path: Path, models: tuple[Path, Path]) -> Bench:
    """Run a command on generated traces and questions; gives its report."""
    write_rows(tmp_path, "tau-bench", generated_rows("tau-bench", num_episodes=3, seed=0))
    questions = [{"id": f"q{i}", "turns": [f"what is {i}?"]} for i in range(9)]
    (tmp_path / "prompts").mkdir()
    with gzip.open(tmp_path / "prompts" / "spec-bench.jsonl.gz", "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(question) + "\n" for question in questions)

    def call(name: str, *arguments: str, exit_code: int = 0) -> dict[str, Any]:
        file = tmp_path / "report.json"
        target, drafter = map(str, models)
        command_line = ["bench", name, "--traces", str(tmp_path), "--json", str(file)]
        command_line += ["--model", target, "--drafter", drafter]
        command_line += ["--source", "tau-bench", "--source", "spec-bench", "--prompts", "5"]
        command_line += ["--context-tokens", "60", "--output-tokens", "20", *arguments]
        done = CliRunner().invoke(cli, command_line)
        assert done.exit_code == exit_code, done.output
        return {**json.loads(file.read_text()), "output": done.output}

    return call


WEIGHED = ("exact", "--concurrency", "3")
EXACT = (*WEIGHED, "--always-draft")  # what drafts bring does not depend on this machine's speed


def test_every_way_of_drafting_says_the_same(bench: Bench, tmp_path: Path) -> None:
    """All modes on all prompts; a second run finds the results of the first and reports alike."""
    work = ("--work", str(tmp_path / "work"))
    report = bench(*EXACT, *work)
    figures = report["figures"]
    for source, number in (("tau-bench", 5), ("spec-bench", 5), ("all", 10)):
        for mode in MODES:
            assert figures[f"{source}.{mode}.identical"] == number
            assert f"| {source} | {mode} | {number} |" in report["output"]
    assert figures["differing"] == 0
    assert figures["all.off.tokens_per_step"] == 1
    assert figures["all.drafter.tokens_per_step"] > 1.2
    assert figures["all.off.cpu_times_off"] == 1
    assert figures["all.fused.cpu_times_off"] > 0
    assert figures["all.off.looping"] == figures["all.fused.looping"] <= 10
    assert figures["all.drafter-tree.drafter_passes"] > 0
    assert figures["all.drafter.with_model"] == figures["all.fused.with_model"] == 1
    assert figures["all.memory.with_model"] == figures["all.fused.cut_tokens"] == 0
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "work").glob("*.json")}
    assert len(files) == 4
    assert bench(*EXACT, *work)["figures"] == figures
    assert {p: p.stat().st_mtime_ns for p in files} == files


def test_sampled_replies_are_held_against_the_target(bench: Bench) -> None:
    """With a temperature replies are the same by seed, and their tokens as frequent as promised."""
    sampled = ("--temperature", "0.8", "--top-p", "0.95")
    figures = bench(*WEIGHED, *sampled, "--mode", "drafter", "--mode", "fused-tree")["figures"]
    assert 0 < figures["all.fused-tree.with_model"] <= 1
    assert figures["all.fused-tree.identical"] == figures["all.drafter.identical"] == 10
    assert "all.memory.identical" not in figures
    for kind, least in (("rank", 150), ("token", 70)):
        assert figures[f"frequency.fused-tree.{kind}.tokens"] >= least
        assert figures[f"frequency.fused-tree.{kind}.p_value"] > 1e-3


def test_a_verifier_that_lets_drafts_through_is_reported(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command fails, and says which reply differs from where on and that it is no rounding."""
    from paceline.adapters.embedded import engine

    def lenient(logits: Any, token_ids: Any, parents: Any, *_: Any) -> Any:
        said = [int(row.argmax()) for row in logits]
        return ([token_ids[0], said[1]], [0]) if parents else (said[:1], [])

    monkeypatch.setattr(engine, "verify", lenient)
    report = bench(*EXACT, exit_code=1)
    assert report["figures"]["differing"] > 0
    assert report["figures"]["largest_gap"] > 1e-3
    assert "differs from token" in report["output"]
    assert "not by rounding" in report["output"]


def test_couplings_are_compared(bench: Bench) -> None:
    """Each accepts more the more it drafts, and none more of one token than is possible."""
    figures = bench("coupling", "--temperature", "0.7", "--draws", "16")["figures"]
    for source in ("tau-bench", "spec-bench"):
        where = f"{source} T=0.7"
        assert figures[f"{where}.prefixes"] > 50
        for method in ("likeliest", "race", "rejection"):
            one, two, four = (figures[f"{where}.{method}.{k}"] for k in (1, 2, 4))
            assert 0 < one < two < four <= 1
            assert one <= figures[f"{where}.rejection.1"] + 0.02


def test_acceptance_is_what_theory_says() -> None:
    """Of two given distributions: rejection 1 - d, the race its closed form, the likeliest p."""
    import torch

    from paceline.benchmarks.exact.coupling import acceptance

    target = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    drafter = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    many = acceptance(target, drafter, (1, 2, 3), num_draws=4000, generator=generator)
    closed = sum(
        1 / sum(max(float(target[0, j] / target[0, i]), float(drafter[0, j] / drafter[0, i]))
                for j in range(3))
        for i in range(3)
    )  # fmt: skip
    assert float(many["likeliest", 1]) == pytest.approx(0.3)
    assert float(many["race", 1]) == pytest.approx(closed, abs=0.03)
    assert float(many["rejection", 1]) == pytest.approx(0.7, abs=0.03)
    assert float(many["race", 3]) == pytest.approx(1.0)
    assert float(many["rejection", 3]) == pytest.approx(1.0)


def test_frequencies_notice_what_is_off() -> None:
    """Tokens drawn as promised fit; a twentieth more of one of them does not."""
    import torch

    from paceline.benchmarks.exact.frequencies import Frequencies, by_rank, by_token

    generator = torch.Generator().manual_seed(3)
    probs = torch.softmax(torch.randn(20_000, 9, generator=generator).double(), dim=-1)
    values = []
    for share in (0.0, 0.05):
        favoured = (1 - share) * probs
        favoured[:, 4] += share
        drawn = torch.multinomial(favoured, 1, generator=generator)[:, 0].tolist()
        ranks, tokens = Frequencies(4), Frequencies(3)
        ranks.add(*by_rank(probs, drawn, borders=(1, 2, 3, 5)))
        tokens.add(*by_token(probs, drawn, named=[4, 7]))
        values += [ranks.fit(), tokens.fit()]
    assert [fit.degrees for fit in values] == [3, 2, 3, 2]
    assert min(fit.p_value for fit in values[:2]) > 0.01
    assert max(fit.p_value for fit in values[2:]) < 1e-4


def test_categories_that_are_nearly_never_expected_count_together() -> None:
    """With 40 expected of one token and one of each of five, there are two categories."""
    import torch

    from paceline.benchmarks.exact.frequencies import Frequencies

    counts = Frequencies(6)
    probs = torch.tensor([[40.0, 1, 1, 1, 1, 1]], dtype=torch.float64).expand(45, 6) / 45
    counts.add(probs, torch.tensor([0] * 39 + [1] * 6))
    fit = counts.fit()
    assert fit.degrees == 1
    assert fit.statistic == pytest.approx(1 / 40 + 1 / 5)
