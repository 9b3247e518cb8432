"""`paceline bench learn-latency`: blocks with the learner and without, and what they come to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry, generate_latest

from paceline.benchmarks.learn.records import Asked
from paceline.benchmarks.learn.stack import is_waiting
from paceline.benchmarks.learn.steady import (
    Block,
    Pair,
    figures,
    gate_figures,
    only_if,
    part_figures,
    ratios,
    run_pair,
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
paceline_learner_reaction_count_total{group="shared"} 4.0
paceline_learner_reaction_seconds_total{group="shared"} 0.02
paceline_learner_reaction_longest_seconds{group="shared"} 0.009
# TYPE paceline_learner_seconds_total counter
paceline_learner_seconds_total{gate="closed",group="shared",load="idle",phase="training"} 5.0
paceline_learner_seconds_total{gate="open",group="shared",load="some",phase="judging"} 1.5e+01
"""


def block(*gaps: float, is_learning: bool) -> Block:
    made = Block(is_learning=is_learning)
    made.gaps = list(gaps)
    made.firsts = [10 * gap for gap in gaps]
    if is_learning:
        made.spells = {
            Spell("idle", True, "training"): 8.0,
            Spell("idle", False, "training"): 1.0,
            Spell("idle", True, "storing"): 1.0,
            Spell("idle", True, "waiting"): 6.0,
            Spell("some", True, "training"): 9.0,
        }
    return made


def pair(learning: list[float], stopped: list[float], *, learner_first: bool = True) -> Pair:
    return Pair(
        block(*learning, is_learning=True), block(*stopped, is_learning=False), learner_first
    )


def test_blocks_of_a_kind_are_taken_together() -> None:
    """Percentiles of all their times, and how many times those without the learner's they are."""
    pairs = [pair([0.010, 0.012], [0.010, 0.010]), pair([0.014], [0.010], learner_first=False)]
    found = figures(pairs, gate_figures(METRICS))
    assert found["learning.gap_count"] == 3
    assert found["learning.gap_p50_ms"] == pytest.approx(12.0)
    assert found["stopped.gap_p99_ms"] == pytest.approx(10.0)
    assert found["gap_p50_ratio"] == pytest.approx(1.2)
    assert found["learning.first_p50_ms"] == pytest.approx(120.0)
    assert found["first_p50_ratio"] == pytest.approx(1.2)
    assert found["at_work_share"] == pytest.approx(19 / 25)
    assert found["gate.num_pauses"] == 2
    assert found["longest_part_ms"] == pytest.approx(31.0)
    assert (found["reaction.count"], found["reaction.longest_ms"]) == (4, pytest.approx(9.0))
    assert found["reaction.mean_ms"] == pytest.approx(5.0)


def test_pairs_tell_how_sure_a_ratio_is() -> None:
    """Nothing between alike pairs, however slow; more the more they differ, around the ratio."""
    alike = [np.array([0.01, 0.02]) * number for number in (1, 2, 3, 4)]
    order = np.array([True, False] * 2)
    slower = [1.5 * times for times in alike]
    for ratio, low, high in ratios(slower, alike, order):
        assert ratio == pytest.approx(1.5)
        assert low <= ratio <= high
    (first, *_) = ratios([alike[0] * 1.5] * 4, [alike[0]] * 4, order)
    assert first == pytest.approx((1.5, 1.5, 1.5))
    differing = [times * factor for times, factor in zip(alike, (0.5, 1.0, 2.0, 3.0), strict=True)]
    for _, low, high in ratios(differing, alike, order):
        assert high - low > 0.1


def test_each_order_is_drawn_as_often_as_it_was_asked() -> None:
    """What the second block is quicker by, as memory knows its replies, makes no ratio unsure."""
    beside = [np.array([2.0]), np.array([1.0])] * 3
    alone = [np.array([1.0]), np.array([2.0])] * 3
    order = np.array([True, False] * 3)
    assert [[*each] for each in ratios(beside, alone, order)] == [[1.0, 1.0, 1.0]] * 3


def test_both_blocks_of_a_pair_ask_the_same() -> None:
    """As sessions of their own; the learner runs in the one that it says."""
    asked: list[tuple[bool, list[Asked]]] = []
    prompts = [Asked("one", (1, 2)), Asked("two", (3,))]
    for learner_first in (True, False):
        made = run_pair(
            prompts,
            learner_first=learner_first,
            run=lambda block, its: asked.append((block.is_learning, list(its))),
        )
        assert made.learner_first is learner_first
        assert (made.learning.is_learning, made.stopped.is_learning) == (True, False)
    assert [way for way, _ in asked] == [True, False, False, True]
    assert all([it.token_ids for it in its] == [(1, 2), (3,)] for _, its in asked)
    assert len({it.session for _, its in asked[:2] for it in its}) == 4


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


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--pairs", "5", "even number"),
        ("--pairs", "2", "even number"),
        ("--block-requests", "0", "1 or more"),
    ],
)
def test_pairs_that_make_no_sense_are_refused(
    option: str, value: str, said: str, tmp_path: Path
) -> None:
    """Each way comes first as often as the other, and somebody asks."""
    arguments = ["bench", "learn-latency", str(tmp_path), "--drafter", "d", option, value]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code != 0
    assert said in done.output + str(done.exception)
