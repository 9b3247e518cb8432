"""`paceline bench objectives`: what is varied, how it is compared, and a small run of it all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from model_folders import save_model
from paceline.benchmarks.learn.objectives import ObjectivesSettings, objectives, spread
from paceline.benchmarks.learn.records import Asked, Replayed
from paceline.benchmarks.learn.variants import (
    BASE,
    HeldOutReply,
    checked_cycle,
    figures,
    variants_of,
)
from paceline.errors import ConfigError
from paceline.online.greedy_replay import ReplayCounts
from paceline.online.learner_settings import CycleSettings
from paceline.online.settings import OBJECTIVES
from recorded import write_trace

CALM = ("objective=hybrid", "error_emphasis=1")


def episode(number: int) -> list[dict[str, Any]]:
    """Two short turns, others in every episode."""
    return [
        {"role": "user", "content": f"Go {number}."},
        {"role": "assistant", "content": f"ok {number * 7}"},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "done"},
    ]


def replayed(accepted: int) -> Replayed:
    """Of a reply of a hundred tokens."""
    counts = ReplayCounts(
        num_tokens=100, num_agreed=accepted, num_rounds=99 - accepted, num_accepted=accepted
    )
    return Replayed(counts, accepted / 2)


def test_every_objective_and_weighting_is_compared() -> None:
    """Each but what the base does itself, and all else as in the base."""
    base = checked_cycle({"read_weight": 0, "epochs": 2})
    found = variants_of(base, ())
    assert found[BASE] == base
    assert {it.objective for it in found.values()} == {*OBJECTIVES}
    assert "read_weight=0" not in found
    assert "read_weight=1" in found
    assert all(it.epochs == 2 and it.batch == base.batch for it in found.values())
    both = variants_of(base, ["objective=greedy,learning_rate=0.001"])
    (_, changed) = both.values()
    assert (changed.objective, changed.learning_rate) == ("greedy", 0.001)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs=2", "give NAME=VALUE with objective, read_weight"),
        ("objective", "give NAME=VALUE"),
        ("objective=luck", "Invalid enum value 'luck'"),
        ("error_emphasis=0.5", "give 0 or more, and 1 or more"),
        (f"objective={CycleSettings().objective}", "is what the base does; leave it out"),
    ],
)
def test_variants_that_compare_nothing_are_refused(text: str, message: str) -> None:
    """What changes how much is learned, what means nothing, and the base itself."""
    with pytest.raises(ConfigError, match=message):
        variants_of(CycleSettings(), [text])


def test_settings_that_measure_nothing_are_refused() -> None:
    """Unknown settings of a cycle, and numbers out of range."""
    with pytest.raises(ConfigError, match=r"cycle\.rate is no setting; cycle knows"):
        checked_cycle({"rate": 1})
    told: dict[str, Any] = {
        "traces": "t",
        "drafter": "d",
        "target": "t",
        "workloads": ("s",),
        "prompts": 1,
        "held_out": 2,
        "held_out_turns": 1,
        "context_tokens": 8,
        "output_tokens": 8,
        "seeds": 1,
        "confidence": 0.9,
    }
    ObjectivesSettings(**told)
    with pytest.raises(ConfigError, match="--held-out-turns is 0; give 1 or more"):
        ObjectivesSettings(**{**told, "held_out_turns": 0})
    with pytest.raises(ConfigError, match="--confidence is 1"):
        ObjectivesSettings(**{**told, "confidence": 1.0})


def test_bounds_hold_what_tasks_say_of_a_variant() -> None:
    """One that is better in every task surely is; one that is in half of them is not."""
    replies = [HeldOutReply(f"task-{i // 2}", "w") for i in range(24)]
    base = [replayed(40 + i % 5) for i in range(24)]
    trained = {
        BASE: [base, base],
        "better": [[replayed(50 + i % 5) for i in range(24)]] * 2,
        "mixed": [[replayed(30 + i % 5 + 20 * (i // 2 % 2)) for i in range(24)]] * 2,
    }
    found = figures(trained, [replayed(10)] * 24, replies, confidence=0.95)
    assert found["better.change_least"] > 0.1
    assert found["mixed.change_least"] < 0 < found["mixed.change_most"]
    assert found["better.change_least"] <= found["better.change"] <= found["better.change_most"]
    assert found["better.change.w"] == pytest.approx(found["better.change"])
    assert found["better.accepted_length"] == found["better.seed-1"]
    assert found["base.sampled"] == pytest.approx(found["base.agreement"] / 2)
    assert found["untrained.agreement"] == pytest.approx(0.1)
    assert (found["sessions"], found["replies"]) == (12, 24)
    assert f"{BASE}.change" not in found


def test_prompts_are_spread_and_different() -> None:
    """From the first to the last, none twice."""
    asked = [Asked(f"s{i}", (i // 2,)) for i in range(20)]
    assert [it.token_ids for it in spread(asked, 5)] == [(0,), (2,), (4,), (6,), (8,)]
    assert len(spread(asked, 99)) == 10


def test_a_small_run_compares_and_goes_on(tmp_path: Path) -> None:
    """Real trainings from one start, alike where they are repeated, kept for a next run."""
    target = save_model(tmp_path / "target")
    drafter = save_model(tmp_path / "drafter", noise=0.05)
    write_trace(tmp_path, "s", *[episode(i) for i in range(10)])
    work, report = tmp_path / "work", tmp_path / "report.json"
    words = [str(tmp_path), "--drafter", str(drafter), "--target", str(target)]
    words += ["--workload", "s", "--prompts", "10", "--held-out", "8", "--held-out-turns", "2"]
    words += ["--context-tokens", "64", "--output-tokens", "12", "--seeds", "1"]
    words += ["--learner-option", "cycle.epochs=12", "--work", str(work), "--json", str(report)]
    words += ["--learner-option", "cycle.learning_rate=0.01"]
    words += [word for text in CALM for word in ("--variant", text)]
    done = CliRunner().invoke(objectives, words)
    assert done.exit_code == 0, done.output
    first = json.loads(report.read_text(encoding="utf-8"))
    found = first["figures"]
    assert (found["sessions"], found["replies"]) == (4, 8)
    assert first["settings"]["asked"] == 10
    assert {f"{name}.accepted_length" for name in (BASE, *CALM)} <= found.keys()
    assert found["base.agreement"] > found["untrained.agreement"]
    kept = {file.name: file.stat().st_mtime_ns for file in (work / "trained").iterdir()}
    assert len(kept) == 4
    (work / "trained" / min(kept)).unlink()
    again = CliRunner().invoke(objectives, words)
    assert again.exit_code == 0, again.output
    assert json.loads(report.read_text(encoding="utf-8"))["figures"] == found
    untouched = {
        file.name: file.stat().st_mtime_ns
        for file in (work / "trained").iterdir()
        if file.name != min(kept)
    }
    assert untouched.items() <= kept.items()
    other = CliRunner().invoke(objectives, [*words, "--output-tokens", "6"])
    assert isinstance(other.exception, ConfigError)
    assert "holds other replies" in str(other.exception)
