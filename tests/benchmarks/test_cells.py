"""`paceline bench cells`: which cells there are, and what is made of their results."""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline.benchmarks.cells.command import WAYS, check_ways, chosen_ways, figures, make_cells
from paceline.benchmarks.cells.engine import longest_reply
from paceline.benchmarks.cells.records import CellResult, CellsSettings
from paceline.errors import ConfigError


def result(speed: float, digest: str = "a") -> CellResult:
    return CellResult(
        num_tokens=round(100 * speed),
        seconds=100.0,
        cpu_seconds=90.0,
        draft_tokens=20,
        accepted_tokens=5,
        digest=digest,
    )


def test_every_cell_has_enough_prompts_behind_its_warm_up() -> None:
    """The warm-up ends before the last prompt is taken up, also with few prompts."""
    for factor in (0.01, 1.0, 3.0):
        for cell in make_cells(["agent", "control"], [1, 4, 16, 32, 7], factor):
            assert cell.num_warm >= 1
            # also where all that are in flight end in one step
            assert cell.num_prompts - 2 * cell.in_flight >= cell.num_warm
    names = [cell.name for cell in make_cells(["agent", "control"], [1, 4], 1.0)]
    assert names == ["agent.c1", "control.c1", "agent.c4", "control.c4"]


def test_replies_do_not_all_end_together() -> None:
    """Any few in a row are of different lengths, and the mean is what was asked for."""
    lengths = [longest_reply(place, 48) for place in range(160)]
    assert min(lengths) >= 24
    assert max(lengths) <= 72
    assert sum(lengths) / len(lengths) == pytest.approx(48, rel=0.02)
    assert all(len(set(lengths[i : i + 8])) >= 7 for i in range(152))


def test_a_way_is_held_against_off_and_the_best_fixed_number_of_each_cell() -> None:
    """The best is chosen in hindsight, no drafts among them; over all cells by the mean."""
    off = {"a.c1": result(10), "b.c32": result(100)}
    results = {
        "memory": [[{"a.c1": result(15), "b.c32": result(99)}, off]],
        "fixed-2": [[{"a.c1": result(12), "b.c32": result(80)}, off]],
        "fixed-16": [[{"a.c1": result(16), "b.c32": result(60)}, off]],
    }
    found = figures(results)
    assert found["memory.a.c1.times_off"] == 1.5
    assert found["memory.least_times_off"] == 0.99
    assert found["memory.mean_times_off"] == pytest.approx(1.245)
    assert found["memory.least_times_best_fixed"] == pytest.approx(1.5 / 1.6)
    assert found["memory.mean_times_best_fixed_overall"] == pytest.approx(1.245 / 1.1)
    assert found["memory.a.c1.accepted_per_drafted"] == 0.25
    assert "fixed-2.least_times_best_fixed" not in found


def test_repeats_are_taken_by_their_median_and_replies_compared_in_each() -> None:
    """One run in which they differ is seen."""
    off = {"a.c1": result(10)}
    runs = [
        [{"a.c1": result(speed, digest)}, off] for speed, digest in ((9, "a"), (30, "b"), (12, "a"))
    ]
    found = figures({"memory": runs})
    assert found["memory.a.c1.times_off"] == 1.2
    assert found["memory.a.c1.identical"] == pytest.approx(2 / 3)


def test_ways_that_cannot_be_are_refused() -> None:
    """By name, with what there is."""
    check_ways(["memory", "fixed-128"], None)
    for way in ("fixed-0", "fixed-129", "fixed-x", "off"):
        with pytest.raises(ConfigError, match="give memory, fused, drafter, or fixed-K"):
            check_ways([way], None)
    with pytest.raises(ConfigError, match="needs --drafter"):
        check_ways(["fused"], None)
    check_ways(["fused"], Path("somewhere"))


def test_a_drafter_and_the_bandit_add_their_ways() -> None:
    """Fused drafts where a drafter is given; the bandit above each way that chooses by time."""
    assert chosen_ways([], has_drafter=False, bandit=False) == list(WAYS)
    assert chosen_ways([], has_drafter=True, bandit=False) == [*WAYS, "fused"]
    assert chosen_ways(["memory", "fixed-4"], has_drafter=True, bandit=True) == [
        *("memory", "fixed-4", "memory-bandit"),
    ]
    both = chosen_ways(["fused", "fused-bandit"], has_drafter=True, bandit=True)
    assert both == ["fused", "fused-bandit"]
    check_ways(chosen_ways([], has_drafter=True, bandit=True), Path("somewhere"))


def test_a_fixed_way_drafts_its_number() -> None:
    """And the others up to the setting."""

    def told(way: str) -> CellsSettings:
        return CellsSettings(traces="", target="", way=way, core=0, cells=())

    assert told("fixed-4").num_draft_tokens == 4
    assert told("memory").num_draft_tokens == 16


def test_no_prompt_is_asked_in_two_cells() -> None:
    """Memory would know the reply; sources have their own."""
    cells = make_cells(["a", "b"], [1, 4, 16], 1.0)
    settings = CellsSettings(traces="", target="", way="memory", core=0, cells=cells)
    asked = {"a": set[int](), "b": set[int]()}
    for cell in cells:
        first, total = settings.place(cell, cell.source)
        mine = set(range(first, first + cell.num_prompts))
        assert max(mine) < total == 16 + 48 + 96
        assert asked[cell.source].isdisjoint(mine)
        asked[cell.source] |= mine
