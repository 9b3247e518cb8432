"""The whole of `paceline bench replay` on a small generated trace."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from paceline.benchmarks.replay import command, registry, run
from paceline.benchmarks.replay.plot import curves, family
from paceline.benchmarks.tables import table
from paceline.errors import ConfigError
from paceline.middleware.cli import cli
from small_traces import generated_rows, save_tokenizer, write_rows

Bench = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def bench(tmp_path: Path, tokenizer: Path) -> Bench:
    """Run the command on two generated sources; gives its report."""
    traces = tmp_path / "traces"
    traces.mkdir()
    for seed, source in enumerate(("tau-bench", "medagentbench")):
        write_rows(traces, source, generated_rows(source, num_episodes=6, seed=seed))

    def call(*arguments: str) -> dict[str, Any]:
        file = tmp_path / "replay.json"
        command_line = ["bench", "replay", str(traces), "--tokenizer", str(tokenizer)]
        command_line += ["--state", str(tmp_path / "state"), "--json", str(file), *arguments]
        done = CliRunner().invoke(cli, command_line, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        report: dict[str, Any] = json.loads(file.read_text())
        return report | {"output": done.output}

    return call


def drafters(*names: str) -> list[str]:
    return [word for name in names for word in ("--drafter", name)]


PYTHON_ONLY = drafters(*(n for n in registry.NAMES if n not in registry.ARCTIC))


def test_every_drafter_is_reported_for_every_source(bench: Bench, tmp_path: Path) -> None:
    """All but the peer that must be built: figures, halves, table and plot of one run."""
    report = bench(*PYTHON_ONLY, "--min-probability", "0.1", "--min-probability", "0.4",
                   "--plot", str(tmp_path / "frontier.svg"))  # fmt: skip
    figures, names = report["figures"], report["settings"]["drafters"]
    assert report["settings"]["sources"] == ["tau-bench", "medagentbench"]
    assert {"paceline-0.1", "paceline-tree-0.4", "oracle", "hierarchy", "sam-16"} <= set(names)
    for source in ("tau-bench", "medagentbench"):
        assert figures[f"{source}/none/tokens_per_step"] == 1
        sizes = {figures[f"{source}/{name}/output_tokens"] for name in names}
        assert len(sizes) == 1, "every drafter gets the same requests"
        for name in names:
            assert name in report["output"]
            where = f"{source}/{name}"
            assert figures[f"{where}/tokens_per_step"] >= 1
            assert figures[f"{where}/propose_p99_us"] > 0
            whole = sum(figures[f"{where}/{half}/steps"] for half in ("tuning", "reporting"))
            assert whole == figures[f"{where}/steps"]
            if name.startswith("paceline"):
                assert 0 <= figures[f"{where}/calibration_error"] <= 1
                assert figures[f"{where}/bytes_per_token"] > 4
    for name in set(names) - {
        "oracle",
        "hierarchy",
        "adjacency",
        "paceline-tree-0.1",
        "paceline-tree-0.4",
    }:
        copies = figures[f"macro/{name}/tokens_per_step"]
        assert copies <= figures["macro/oracle/tokens_per_step"], name
    assert figures["macro/oracle/acceptance"] == 1
    assert (tmp_path / "frontier.svg").read_text().startswith("<?xml")


class Counting:
    """Counts the units that are really replayed, and can stop the run before one of them."""

    def __init__(self) -> None:
        self.units: list[tuple[str, str]] = []
        self.stop_before = -1

    def __call__(self, drafter: Any, name: str, scope: Any, **more: Any) -> run.UnitResult:
        if len(self.units) == self.stop_before:
            raise KeyboardInterrupt
        self.units.append((name, scope.name))
        return run.replay_scope(drafter, name, scope, **more)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    counting = Counting()
    monkeypatch.setattr(command, "replay_scope", counting)
    return counting


def figures_without_times(report: dict[str, Any]) -> dict[str, float]:
    return {n: v for n, v in report["figures"].items() if not re.search("_us$|_seconds$", n)}


def test_an_interrupted_run_goes_on(bench: Bench, counting: Counting, tmp_path: Path) -> None:
    """Finished units are not replayed again, and the figures are those of a run in one go."""
    some = drafters("ngram-8", "oracle")
    counting.stop_before = 3
    with pytest.raises(AssertionError, match="Aborted"):
        bench(*some)
    assert len(counting.units) == 3
    counting.stop_before = -1
    resumed = bench(*some)
    assert len(counting.units) == len(set(counting.units)) == 8
    again = bench(*some)
    assert len(counting.units) == 8
    assert again["figures"] == resumed["figures"]
    counting.units.clear()
    elsewhere = bench(*some, "--state", str(tmp_path / "elsewhere"))
    assert len(counting.units) == 8
    assert figures_without_times(elsewhere) == figures_without_times(again)


def test_other_settings_are_replayed(bench: Bench, counting: Counting) -> None:
    """A unit of another threshold, another number of episodes or other markers is not reused."""
    bench(*drafters("paceline"))
    bench(*drafters("paceline"))
    assert len(counting.units) == 4
    bench(*drafters("paceline"), "--min-probability", "0.3")
    assert len(counting.units) == 8
    bench(*drafters("paceline"), "--episodes", "2")
    assert len(counting.units) == 12
    bench(*drafters("paceline"), "--turn-end", "<|im_start|>")
    assert len(counting.units) == 16
    assert bench(*drafters("paceline", "none"), "--episodes", "1")["settings"]["episodes"] == 1
    assert len(counting.units) == 24


def test_a_damaged_unit_is_replayed(bench: Bench, counting: Counting, tmp_path: Path) -> None:
    """Half a file is no result."""
    bench(*drafters("none"))
    (unit, *_) = sorted((tmp_path / "state" / "units").glob("*.json"))
    unit.write_bytes(unit.read_bytes()[:40])
    bench(*drafters("none"))
    assert len(counting.units) == 5


def test_a_missing_peer_is_said(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its package Arctic is left out of the table, and the reason is told and recorded."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    report = bench(*drafters("arctic-24x1", "none"), "--peers", str(tmp_path / "peers"))
    assert "arctic-24x1 is missing: cannot fetch arctic-inference" in report["output"]
    assert report["settings"]["drafters"] == ["none"]
    assert "cannot fetch" in report["settings"]["missing"]["arctic-24x1"]
    assert not [name for name in report["figures"] if "arctic" in name]


@pytest.mark.timeout(600)
def test_arctic_in_the_same_run(bench: Bench, peers_folder: Path) -> None:
    """Built on first use, it drafts at most what the oracle can copy."""
    names = ("arctic-24x1", "arctic-24x4", "oracle")
    figures = bench(*drafters(*names), "--peers", str(peers_folder))["figures"]
    shallow, deep, best = (figures[f"macro/{name}/tokens_per_step"] for name in names)
    assert 1 < shallow <= deep <= best
    assert figures["macro/arctic-24x1/bytes_per_token"] > 20


def test_a_control_source_stays_out_of_the_average(bench: Bench) -> None:
    """It is reported, and the macro is that of the others."""
    figures = bench(*drafters("ngram-8"), "--control", "medagentbench")["figures"]
    own = figures["tau-bench/ngram-8/tokens_per_step"]
    assert figures["medagentbench/ngram-8/tokens_per_step"] != own
    assert figures["macro/ngram-8/tokens_per_step"] == own


def test_sources_are_files_or_folders(tmp_path: Path) -> None:
    """A file of any name, a folder's known sources; anything else is refused with what is known."""
    file = write_rows(tmp_path, "mine", [])
    known = write_rows(tmp_path, "tau-bench", [])
    assert command.find_sources([file]) == ((tmp_path, "mine"),)
    assert command.find_sources([tmp_path]) == ((tmp_path, "tau-bench"),)
    with pytest.raises(ConfigError, match="named twice"):
        command.find_sources([tmp_path, known])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds none of mini-swe-agent"):
        command.find_sources([tmp_path / "empty"])
    with pytest.raises(ConfigError, match="ends in"):
        command.find_sources([tmp_path / "nothing.txt"])


def test_settings_of_one_drafter_are_one_curve() -> None:
    """Thresholds and factors join; different drafters do not."""
    assert {family(n) for n in ("paceline-0.1", "paceline-0.45")} == {"paceline"}
    assert family("arctic-24x1") == family("arctic-24x4") == "arctic-24"
    assert family("arctic-64x1") == "arctic-64"
    assert family("sam-16") == "sam"
    assert family("ngram-8-first") == "ngram-8-first"
    assert family("oracle-anchor4") == "oracle-anchor4"
    figures = {
        f"macro/{name}/reporting/{figure}": value
        for name, point in {"p-0.4": (2.0, 1.5), "p-0.1": (5.0, 2.0), "none": (0.0, 1.0)}.items()
        for figure, value in zip(("drafted_per_step", "tokens_per_step"), point, strict=True)
    }
    assert curves(figures, "macro", "reporting") == {
        "p": [(2.0, 1.5), (5.0, 2.0)],
        "none": [(0.0, 1.0)],
    }


def test_the_table_for_readers(bench: Bench, tmp_path: Path) -> None:
    """A line a drafter, a column a source, from the half that nothing was tuned on."""
    report = bench(*drafters("ngram-8", "oracle"))
    lines = table(tmp_path / "replay.json").splitlines()
    assert (
        lines[0]
        == "| drafter | macro | tau-bench | medagentbench | "
        + " | ".join(["speedup at 0.02", "µs a proposal, p50/p99"])
        + " |"
    )
    shown = report["figures"]["macro/oracle/reporting/tokens_per_step"]
    assert lines[3].startswith(f"| oracle | {shown:.2f}@")
    assert len(lines) == 4


def test_a_model_over_its_sources_is_one_tenant_with_workloads(
    bench: Bench, tmp_path: Path
) -> None:
    """With --tenants each model is a scope; drafters that know workloads differ, others do not."""
    rows = generated_rows("tau-bench", num_episodes=6, seed=0)
    for row in rows:
        row["messages"][0]["content"] = "you are another agent"
    write_rows(tmp_path / "traces", "tau-bench", rows)
    names = drafters("none", "paceline", "paceline-apart", "paceline-tiers")
    report = bench(*names, "--tenants")
    assert report["settings"]["sources"] == ["m", "n"]
    figures = report["figures"]
    apart = bench(*names)["figures"]
    for name in ("requests", "output_tokens"):
        both = [apart[f"{source}/none/{name}"] for source in ("tau-bench", "medagentbench")]
        assert figures[f"m/none/{name}"] + figures[f"n/none/{name}"] == sum(both)
    steps = {
        d: figures[f"m/{d}-0.1/steps"] for d in ("paceline", "paceline-apart", "paceline-tiers")
    }
    assert steps["paceline-apart"] != steps["paceline-tiers"]
    assert max(steps.values()) < figures["m/none/steps"]


def test_tenants_need_more_than_one_workload(bench: Bench, tmp_path: Path) -> None:
    """The same system message everywhere is one workload: the command says what to do."""
    with pytest.raises(AssertionError, match="more than one workload; give more sources"):
        bench(*drafters("none"), "--tenants")
