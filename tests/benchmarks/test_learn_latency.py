"""`paceline bench learn-latency`: blocks with the learner and without, and what they come to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry, generate_latest

from paceline.benchmarks.learn.stack import is_waiting
from paceline.benchmarks.learn.steady import (
    Block,
    figures,
    gate_figures,
    only_if,
    part_figures,
    spells_of,
    time_figures,
)
from paceline.middleware.cli import cli
from paceline.online.idle_time import Spell
from paceline.online.learner_metrics import LearnerCollector
from paceline.online.learner_notes import LearnerFigures
from paceline.online.looks import Longest

METRICS = """# HELP paceline_learner_gate_num_pauses How often it closed.
# TYPE paceline_learner_gate_num_pauses gauge
paceline_learner_gate_num_pauses{group="shared"} 2.0
paceline_learner_longest_part_seconds{group="shared"} 0.031
# TYPE paceline_learner_seconds_total counter
paceline_learner_seconds_total{gate="closed",group="shared",load="idle",phase="training"} 5.0
paceline_learner_seconds_total{gate="open",group="shared",load="some",phase="judging"} 1.5e+01
"""


def block(*gaps: float, is_learning: bool) -> Block:
    made = Block(is_learning=is_learning)
    made.gaps, made.num_looks, made.num_at_work = list(gaps), 4 * is_learning, 3 * is_learning
    if is_learning:
        made.spells = {
            Spell("idle", True, "training"): 8.0,
            Spell("idle", False, "training"): 1.0,
            Spell("idle", True, "storing"): 1.0,
            Spell("idle", True, "waiting"): 6.0,
            Spell("some", True, "training"): 9.0,
        }
    return made


def test_blocks_of_a_kind_are_taken_together() -> None:
    """Percentiles of all their gaps, and how many times those without the learner's they are."""
    blocks = [
        block(0.010, 0.012, is_learning=True),
        block(0.010, 0.010, is_learning=False),
        block(0.014, is_learning=True),
    ]
    found = figures(blocks, gate_figures(METRICS))
    assert found["learning.pieces"] == 3
    assert found["learning.gap_p50_ms"] == pytest.approx(12.0)
    assert found["stopped.gap_p99_ms"] == pytest.approx(10.0)
    assert found["gap_p50_ratio"] == pytest.approx(1.2)
    assert found["at_work_share"] == pytest.approx(0.75)
    assert found["gate.num_pauses"] == 2
    assert found["longest_part_ms"] == pytest.approx(31.0)


def test_where_time_goes_is_of_blocks_with_the_learner() -> None:
    """Idle time with something to learn, what of it was used, and each part by its name."""
    blocks = [block(0.01, is_learning=way) for way in (True, False, True)]
    found = time_figures(blocks)
    assert (found["idle.seconds"], found["idle.used_seconds"]) == (20.0, 16.0)
    assert found["idle.used_share"] == pytest.approx(0.8)
    assert found["time.idle.closed.training"] == 2.0
    assert found["time.some.open.training"] == 18.0
    assert time_figures([block(0.01, is_learning=False)])["idle.used_share"] == 0.0


def test_what_the_learner_tells_is_read_as_it_writes_it() -> None:
    """Of the page of metrics, whatever else is on it and in whichever order labels come."""
    told = {Spell("idle", False, "training"): 5.0, Spell("some", True, "judging"): 15.0}
    assert spells_of(METRICS) == told
    registry = CollectorRegistry()
    figures = LearnerFigures(phase="judging")
    registry.register(LearnerCollector("shared", figures, dict, lambda: told))
    page = generate_latest(registry).decode()
    assert spells_of(page) == told
    assert not is_waiting(page)
    figures.phase = "waiting"
    assert is_waiting(generate_latest(registry).decode())


def test_parts_between_looks_are_told_by_kind() -> None:
    """As the learner writes them, by one of the two clocks."""
    registry = CollectorRegistry()
    figures = LearnerFigures(
        longest={"training": Longest(0.04, 0.02), "loading": Longest(0.5, 0.1)}
    )
    registry.register(LearnerCollector("shared", figures, dict))
    page = generate_latest(registry).decode()
    assert part_figures(page, "clock") == {
        "longest.training.clock_ms": pytest.approx(40.0),
        "longest.loading.clock_ms": pytest.approx(500.0),
    }
    assert part_figures(page, "processor")["longest.loading.processor_ms"] == pytest.approx(100.0)


def test_the_learner_stands_still_and_goes_on() -> None:
    """Its whole group does, in blocks without it only."""
    command = [sys.executable, "-c", "while True: pass"]
    process = subprocess.Popen(command, process_group=0)
    try:
        with only_if(True, process.pid):
            assert state(process.pid) != "T"
        with only_if(False, process.pid):
            deadline = time.monotonic() + 10
            while state(process.pid) != "T":
                assert time.monotonic() < deadline
        assert state(process.pid) != "T"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def state(pid: int) -> str:
    """The kernel's letter for it; T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def test_blocks_come_in_fours(tmp_path: Path) -> None:
    """Each way first and last as often as the other."""
    arguments = ["bench", "learn-latency", str(tmp_path), "--drafter", "d", "--blocks", "6"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code != 0
    assert "multiple of 4" in done.output + str(done.exception)
