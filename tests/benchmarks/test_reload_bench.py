"""`paceline bench reload` changes a policy under load and counts what becomes of requests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from paceline.benchmarks.reload import (
    BROKEN,
    KINDS,
    Heard,
    PolicyOnDisk,
    ReloadBenchSettings,
    _figures,
    run_reload_bench,
)
from paceline.errors import ConfigError
from paceline.middleware.cli import cli
from paceline.middleware.config import read_policy

DOCS = Path(__file__).parents[2] / "docs"


def test_a_small_run_loses_nothing_and_takes_right_files_over_alone() -> None:
    """Every right file is taken, every wrong one refused; nothing is timed here."""
    settings = ReloadBenchSettings(
        reloads=2, tenants=3, rate=40.0, connections=2, window_seconds=4.0
    )
    report = json.loads(run_reload_bench(settings).as_json())
    figures = report["figures"]
    assert report["bench"] == "reload"
    assert figures["requests"] > 100
    assert figures["lost"] == figures["policies_out_of_turn"] == 0
    assert (figures["taken"], figures["refused"]) == (2, 2)
    assert 0 < figures["reload_median_seconds"] <= figures["reload_max_seconds"]
    for kind in KINDS:
        assert figures[f"{kind}_p50_ms"] <= figures[f"{kind}_p99_ms"]


def test_latencies_count_by_the_window_they_were_due_in() -> None:
    """What was due around a change is the change's, whenever it was answered."""
    windows = [("quiet", 10.0), ("changed", 12.0), ("broken", 14.0), ("quiet", 16.0)]
    answered = [(t + 0.1, 0.001) for _, t in windows] + [(12.2, 9.0), (13.5, 7.0), (10.3, 0.003)]
    heard = Heard(answered, 2, [(11.0, 1), (12.5, 2), (12.6, 2)], windows, [0.5, 0.7, 0.6])
    figures = _figures(heard)
    assert (figures["requests"], figures["lost"]) == (9, 2)
    assert (figures["changed_max_ms"], figures["changed_requests"]) == (9000, 2)
    assert (figures["quiet_max_ms"], figures["quiet_requests"]) == (3, 3)
    assert (figures["reload_median_seconds"], figures["reload_max_seconds"]) == (0.6, 0.7)
    assert figures["policies_out_of_turn"] == 0
    back = Heard(answered, 0, [(11.0, 2), (12.5, 1)], windows, [0.5])
    assert _figures(back)["policies_out_of_turn"] == 1


def test_files_are_what_they_are_meant_to_be(tmp_path: Path) -> None:
    """The right ones are policies that differ, none of the wrong ones is one."""
    policy = PolicyOnDisk(tmp_path / "policy.yaml", 4)
    policy.put(policy.drafting(7))
    read = read_policy(policy.path)
    assert read.resolved(read.tenants[3]).policy.speculation.draft_tokens == 7
    for text in BROKEN:
        policy.put(text)
        with pytest.raises(ConfigError):
            read_policy(policy.path)


def test_the_page_says_what_was_measured() -> None:
    """The table and the numbers of docs/policy.md are those of the report beside it."""
    text = (DOCS / "policy.md").read_text(encoding="utf-8")
    report = json.loads((DOCS / "benchmarks" / "reload.json").read_text(encoding="utf-8"))
    figures = report["figures"]
    for kind, shown in zip(
        KINDS, ("no change", "a right file", "a wrong file, or none"), strict=True
    ):
        took = [figures[f"{kind}_{figure}_ms"] for figure in ("p50", "p99", "max")]
        cells = " | ".join(f"{each:.1f} ms" for each in took)
        assert f"| {shown} | {figures[f'{kind}_requests']:,.0f} | {cells} |" in text
    assert f"of {figures['requests']:,.0f} requests {figures['lost']:.0f} were lost" in text
    assert f"came {figures['reload_median_seconds']:.2f} s after" in text
    assert f"median; {figures['reload_max_seconds']:.2f} s at most" in text
    assert figures["policies_out_of_turn"] == 0
    assert report["settings"]["tenants"] == 100
    assert figures["taken"] == figures["refused"] == report["settings"]["reloads"] == 30


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    """Nothing is started and nothing is written."""
    target = tmp_path / "out.json"
    for option, value in (("--reloads", "0"), ("--rate", "-1"), ("--tenants", "0")):
        done = CliRunner().invoke(cli, ["bench", "reload", option, value, "--json", str(target)])
        assert done.exit_code != 0
        assert option in done.output
    assert not target.exists()
