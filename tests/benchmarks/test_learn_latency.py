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

from paceline.benchmarks.learn.steady import Block, figures, gate_figures, only_if
from paceline.middleware.cli import cli

METRICS = """# HELP paceline_learner_gate_idle_seconds How long it was idle, in seconds.
# TYPE paceline_learner_gate_idle_seconds gauge
paceline_learner_gate_idle_seconds{group="shared"} 50.0
paceline_learner_gate_used_seconds{group="shared"} 45.0
paceline_learner_gate_busy_seconds{group="shared"} 3.0
paceline_learner_gate_num_pauses{group="shared"} 2.0
paceline_learner_longest_part_seconds{group="shared"} 0.031
"""


def block(*gaps: float, is_learning: bool) -> Block:
    made = Block(is_learning=is_learning)
    made.gaps, made.num_looks, made.num_at_work = list(gaps), 4 * is_learning, 3 * is_learning
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
    assert found["gate.used_share"] == pytest.approx(0.9)
    assert found["longest_part_ms"] == pytest.approx(31.0)


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
