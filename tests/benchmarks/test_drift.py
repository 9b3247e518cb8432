"""`paceline bench drift`: what is asked, and what is made of the requests behind the turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import pytest
from click.testing import CliRunner

from paceline.benchmarks.cells.drift import drift, turn_cell
from paceline.benchmarks.cells.engine import read_cell
from paceline.benchmarks.cells.records import Cell, CellResult, CellsSettings, Mark
from paceline.benchmarks.cells.turns import (
    Plan,
    Run,
    Span,
    Speeds,
    drafted,
    per_second,
    turn_figures,
    turn_table,
)
from paceline.benchmarks.replay.tokens import Renderer, load_encoder
from paceline.errors import ConfigError
from recorded import write_tokenizer, write_trace

PLAN = Plan(within=4, window=2)
NUM_BEFORE, NUM_AFTER = 4, 8


def run(seconds: Sequence[float], *, turn: int = NUM_BEFORE, digest: str = "a") -> CellResult:
    """Each request says 12 tokens, drafts 6 and has 3 of them accepted; its time is given."""
    at = [0.0, *accumulate(seconds)]
    marks = [Mark(12 * i, 100 + t, 50 + t / 2, 6 * i, 3 * i) for i, t in enumerate(at)]
    return CellResult(
        num_tokens=marks[-1].num_tokens,
        seconds=at[-1],
        cpu_seconds=at[-1] / 2,
        draft_tokens=marks[-1].draft_tokens,
        accepted_tokens=marks[-1].accepted_tokens,
        digest=digest,
        marks=tuple(marks),
        turn=turn,
    )


def steady(before: float, after: float | Sequence[float], *, digest: str = "a") -> CellResult:
    """Seconds of each request before the turn, and of each, or of each two, behind it."""
    behind = [after] * NUM_AFTER if isinstance(after, float) else [t for t in after for _ in "ab"]
    return run([before] * NUM_BEFORE + behind, digest=digest)


OFF = steady(2.0, 2.0)


def speeds(repeats: int = 1, **ways: CellResult) -> Speeds:
    """Of ways beside an engine that takes two seconds a request throughout."""
    runs: dict[str, list[Run]] = {
        way.replace("_", "-"): [(result, OFF)] * repeats for way, result in ways.items()
    }
    return Speeds(runs, PLAN)


def test_windows_are_whole_and_end_where_the_shortest_run_does() -> None:
    """Before the turn each run has what it has."""
    longer, shorter = run([1.0] * 15), run([1.0] * 14, turn=5)
    assert PLAN.spans([longer, shorter]) == {
        "before": Span(-4, 0),
        "1-2": Span(1, 2),
        "3-4": Span(3, 4),
        "5-6": Span(5, 6),
        "7-8": Span(7, 8),
        "after": Span(1, 9),
        "rest": Span(5, 9),
    }


def test_tokens_are_counted_between_the_ends_of_requests() -> None:
    """By the clock and by the processor; what was before the warm-up's end is not there."""
    result = run([1.0, 1.0, 4.0, 2.0, 6.0], turn=2)
    assert per_second(result, Span(-1, 0)) == 12.0
    assert per_second(result, Span(1, 2)) == 24 / 6
    assert per_second(result, Span(3, 3)) == 2.0
    assert per_second(result, Span(1, 2), by_processor=True) == 8.0
    assert per_second(result, Span(-7, 0)) == 12.0
    assert drafted(result, Span(1, 3)) == 0.5


def test_requests_that_end_in_one_step_have_no_speed_of_their_own() -> None:
    """It is not infinite, and a report leaves it out."""
    together = Mark(40, 5.0, 5.0, 0, 0)
    marks = (Mark(0, 1.0, 1.0, 0, 0), *[together] * 3, Mark(50, 9.0, 9.0, 0, 0))
    result = CellResult(
        num_tokens=50,
        seconds=8.0,
        cpu_seconds=8.0,
        draft_tokens=0,
        accepted_tokens=0,
        digest="",
        marks=marks,
        turn=1,
    )
    assert math.isnan(per_second(result, Span(1, 2)))
    assert math.isnan(drafted(result, Span(1, 2)))
    assert per_second(result, Span(1, 3)) == 2.5


def test_a_bandit_is_held_to_the_best_way_of_all_that_comes_after() -> None:
    """Chosen in hindsight, another than before; in windows it is the same."""
    found = turn_figures(
        speeds(
            fixed_2=steady(1.6, 1.0),
            fixed_16=steady(0.8, [0.5, 2.0, 2.0, 2.0]),
            memory_bandit=steady(0.8, [2.0, 1.25, 1.0, 1.0]),
        )
    )
    assert found["fixed-16.is_best_before"] == 1
    assert found["fixed-2.is_best_after"] == 1
    assert found["fixed-16.is_best_after"] == found["off.is_best_after"] == 0
    assert found["fixed-2.after.times_off"] == pytest.approx(2.0)
    assert found["off.after.times_off"] == 1
    shares = [found[f"memory-bandit.{name}.of_best"] for name in ("1-2", "3-4", "5-6", "7-8")]
    assert shares == pytest.approx([0.5, 0.8, 1.0, 1.0])
    assert found["memory-bandit.before.of_best"] == pytest.approx(1.0)
    assert found["memory-bandit.after.of_best"] == pytest.approx(8 / 10.5)
    assert found["memory-bandit.rest.of_best"] == pytest.approx(1.0)
    assert found["memory-bandit.is_back"] == 1
    assert found["memory-bandit.back_from_request"] == 5
    assert found["rest.requests"] == 4
    assert found["memory-bandit.rest.drafted_per_token"] == 0.5
    assert found["memory-bandit.rest.of_best_by_processor"] == pytest.approx(1.0)


def test_one_good_window_is_not_to_be_back() -> None:
    """All behind `within` is counted; a way that never has the goal's share has no window."""
    slow, late = steady(1.0, 1.2), steady(1.0, [1.0, 2.0, 2.0, 2.0])
    found = turn_figures(speeds(fixed_2=steady(1.0, 1.0), memory_bandit=late, fused_bandit=slow))
    assert found["memory-bandit.rest.of_best"] == pytest.approx(0.5)
    assert found["memory-bandit.is_back"] == 0
    assert found["memory-bandit.back_from_request"] == 1
    assert found["fused-bandit.is_back"] == 0
    assert math.isnan(found["fused-bandit.back_from_request"])


def test_a_way_that_chooses_by_time_may_be_the_best() -> None:
    """None without a bandit is left out; the fixed ones, off among them, are told of besides."""
    measured = speeds(
        memory=steady(2.0, 1.0), fixed_2=steady(2.0, 4.0), memory_bandit=steady(2.0, 1.6)
    )
    found = turn_figures(measured)
    assert measured.best("after") == "memory"
    assert measured.best("after", is_fixed=True) == "off"
    assert found["memory-bandit.rest.of_best"] == pytest.approx(1 / 1.6)
    assert found["memory-bandit.rest.of_best_fixed"] == pytest.approx(2 / 1.6)


def test_engines_that_do_the_same_tell_the_noise() -> None:
    """All that were off in one repeat; each way is taken beside its own."""
    slower = steady(2.0, [2.0, 2.0, 2.5, 2.0])
    measured = Speeds(
        {"fixed-2": [(steady(1.0, 1.0), OFF)], "memory-bandit": [(steady(1.0, 1.0), slower)]}, PLAN
    )
    assert measured.noise("1-2") == 1
    assert measured.noise("5-6") == pytest.approx(1.25)
    found = turn_figures(measured)
    assert found["5-6.widest_ratio_of_off"] == pytest.approx(1.25)
    assert found["memory-bandit.5-6.of_best"] == pytest.approx(1.25)
    assert found["memory-bandit.5-6.of_best_unpaired"] == pytest.approx(1.0)


def test_repeats_are_taken_by_their_geometric_mean() -> None:
    """The least and the most of them are kept, and replies compared in each."""
    bandit = [(steady(2.0, 1.0), OFF), (steady(2.0, 4.0, digest="b"), OFF)]
    measured = Speeds({"fixed-2": [(steady(2.0, 2.0), OFF)] * 2, "memory-bandit": bandit}, PLAN)
    found = turn_figures(measured)
    assert found["memory-bandit.rest.of_best"] == pytest.approx(1.0)
    assert found["memory-bandit.rest.of_best_least"] == pytest.approx(0.5)
    assert found["memory-bandit.rest.of_best_most"] == pytest.approx(2.0)
    assert found["memory-bandit.identical"] == 0.5
    assert found["fixed-2.identical"] == 1


def test_the_table_answers_whether_it_is_back() -> None:
    """In a sentence with the share, the requests and the first window."""
    text = turn_table(
        speeds(fixed_2=steady(1.0, 1.0), memory_bandit=steady(1.0, [2.0, 1.0, 1.25, 1.25]))
    )
    assert "best before: fixed-2, after: fixed-2" in text
    assert (
        "memory-bandit: 0.800 of fixed-2 in requests 5 to 8 behind the turn (below the goal of "
        "0.95), 0.800 of fixed-2, the best fixed one; the first window at the goal: 3-4" in text
    )


def test_the_turn_stands_behind_the_warm_up_and_the_first_kind() -> None:
    """As many warm up as are in flight; orders differ by their seeds, everything else does not."""
    cell = turn_cell(("a", "b"), 4, (8, 79), 3)
    assert cell == Cell("a", 4, 91, 4, "b", 79, 3)
    assert cell.parts == {"a": 12, "b": 79}
    assert cell.name == "a-b.c4"


def test_no_prompt_is_asked_twice(tmp_path: Path) -> None:
    """All of the first kind, then all of the second, each in the seed's order."""
    for source in ("x", "z"):
        episodes = [
            [{"role": "user", "content": f"{source}{i}"}, {"role": "assistant", "content": "yes"}]
            for i in range(30)
        ]
        write_trace(tmp_path, source, *episodes)
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    renderer = Renderer(load_encoder(str(tokenizer)))

    def asked(order: int) -> list[tuple[int, ...]]:
        cell = turn_cell(("x", "z"), 2, (8, 10), order, PLAN)
        told = CellsSettings(
            traces=str(tmp_path), target=str(tokenizer), way="memory", core=0, cells=(cell,)
        )
        return [tuple(prompt) for prompt in read_cell(told, cell, renderer)]

    first, second = asked(0), asked(1)
    assert len(first) == len(set(first)) == 20
    letters = [renderer.encode([source])[0].tolist()[0] for source in "xz"]
    assert all((letters[0] in p, letters[1] in p) == (True, False) for p in first[:10])
    assert all((letters[0] in p, letters[1] in p) == (False, True) for p in first[10:])
    assert first != second
    assert set(first) == set(second)
    assert first == asked(0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["s", "s"], "both kinds are 's'; name two"),
        (["s", "t", "--before", "31"], r"--before is 31; give at least 32, twice --in-flight"),
        (
            ["s", "t", "--after", "90"],
            r"--after is 90; give at least 91: --within 50, one --window",
        ),
        (["s", "t", "--way", "fixed-2"], r"--way is fixed-2: none has a bandit; add memory-bandit"),
        (["s", "t", "--way", "fused"], r"--way fused needs --drafter"),
        (["s", "t", "--way", "slow-bandit"], r"--way is 'slow-bandit'; give memory"),
    ],
)
def test_what_cannot_be_is_refused_before_an_engine_starts(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    """With the value, the limit and what to do."""
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(
            drift, [str(tmp_path), *arguments], catch_exceptions=False, standalone_mode=False
        )
