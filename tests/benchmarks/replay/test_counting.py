"""Verification, totals and figures are those of the protocol, by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.benchmarks.replay.base import Draft, Memory, accepted_depths, num_accepted
from paceline.benchmarks.replay.counts import Counts, Reliability, Timing, mean_of_each
from paceline.benchmarks.replay.drafters.none import NoDrafter
from paceline.benchmarks.replay.episodes import Episode, Scope, Turn
from paceline.benchmarks.replay.run import UnitResult, replay_scope
from paceline.benchmarks.replay.summary import figures
from paceline.errors import DraftError


class Scripted(NoDrafter):
    """Drafts what it was given, and keeps what it was told."""

    def __init__(self, *drafts: Draft) -> None:
        self.drafts = list(drafts)
        self.said: list[object] = []

    def start(
        self, request_id: int, session_id: str, scope: str, prompt_ids: Sequence[int]
    ) -> None:
        self.said.append((request_id, session_id, scope, list(prompt_ids)))

    def propose(self, request_id: int, max_tokens: int) -> Draft:
        assert max_tokens == 32
        return self.drafts.pop(0)

    def commit(self, request_id: int, token_ids: list[int]) -> None:
        self.said.append(token_ids)

    def finish(self, request_id: int) -> None:
        self.said.append("finish")

    def memory(self) -> Memory | None:
        return Memory(300, 10)


def scope_of(
    *outputs: Sequence[int], seen: bool = False, reporting: bool = False, model: str = "m"
) -> Scope:
    episodes = []
    for number, output in enumerate(outputs):
        stream = np.array([7, 8, *output, 9], np.int32)
        turns = (Turn(2, 2 + len(output)),)
        episodes.append(Episode(f"e{number}", "x", stream, 0, turns, seen, reporting))
    return Scope("s", model, tuple(episodes))


def test_one_request_by_hand() -> None:
    """Prefill's token is no step; a step commits what was right and one more, up to the end."""
    drafter = Scripted(
        Draft([2, 3, 9]),  # two right: commits 2 3 4
        Draft([]),  # commits 5
        Draft([6, 0, 0, 0]),  # the end; three past it are drafted, not accepted
    )
    result = replay_scope(drafter, "scripted", scope_of([1, 2, 3, 4, 5, 6]))
    assert drafter.said == [(1, "x", "s/m", [7, 8]), [1], [2, 3, 4], [5], [6], "finish"]
    (counts,) = result.counts.values()
    assert (counts.requests, counts.output_tokens, counts.steps) == (1, 6, 3)
    assert (counts.committed, counts.drafted, counts.accepted) == (5, 7, 3)
    quality = counts.quality()
    assert quality["tokens_per_step"] == pytest.approx(5 / 3)
    assert quality["drafted_per_step"] == pytest.approx(7 / 3)
    assert quality["acceptance"] == pytest.approx(3 / 7)
    assert quality["speedup_at_0.05"] == pytest.approx(5 / 3 / (1 + 0.05 * 7 / 3))
    assert math.isnan(quality["calibration_error"])
    assert (result.num_bytes, result.num_tokens) == (300, 10)


def test_a_reply_of_one_token_takes_no_step() -> None:
    """Prefill writes it."""
    (counts,) = replay_scope(Scripted(), "d", scope_of([5])).counts.values()
    assert (counts.steps, counts.committed, counts.output_tokens) == (0, 0, 1)
    assert math.isnan(counts.quality()["tokens_per_step"])


def test_a_draft_over_the_budget_is_an_error() -> None:
    """Nobody gets more tokens verified than others."""
    with pytest.raises(DraftError, match="33"):
        replay_scope(Scripted(Draft([0] * 33)), "d", scope_of([1, 2]))


def test_only_nodes_put_to_the_test_are_scored() -> None:
    """A node counts for calibration if its parent was accepted, its siblings too."""
    tree = Draft([2, 5, 3, 4, 9, 6], [-1, -1, 0, 2, 0, 1], [0.95, 0.25, 0.85, 0.75, 0.15, 0.65])
    result = replay_scope(Scripted(tree, Draft([])), "d", scope_of([1, 2, 3, 8, 9]))
    (counts,) = result.counts.values()
    reliability = counts.reliability
    assert reliability.num_nodes == [0, 1, 1, 0, 0, 0, 0, 1, 1, 1]
    assert reliability.accepted == [0, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    gaps = 0.15 + 0.25 + 0.75 + (1 - 0.85) + (1 - 0.95)
    assert reliability.expected_error == pytest.approx(gaps / 5)
    assert (counts.drafted, counts.accepted, counts.committed) == (6, 2, 4)


def paths(draft: Draft) -> Iterator[list[int]]:
    """The tokens from the root to each node."""
    found: list[list[int]] = []
    assert draft.parent is not None
    for token, parent in zip(draft.token_ids, draft.parent, strict=True):
        found.append([*(found[parent] if parent >= 0 else []), token])
        yield found[-1]


trees = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), max_size=12).map(
    lambda nodes: Draft([t for t, _ in nodes], [min(p, i) - 1 for i, (_, p) in enumerate(nodes)])
)
outputs = st.lists(st.integers(0, 2), min_size=1, max_size=8)


@settings(deadline=None)
@given(trees, outputs, st.integers(0, 3))
def test_a_tree_is_accepted_along_its_best_path(
    tree: Draft, output: list[int], position: int
) -> None:
    """Against all paths: the longest that the output begins with, wherever equal tokens branch."""
    left = output[position:]
    right = [path for path in paths(tree) if left[: len(path)] == path]
    assert num_accepted(tree, output, position) == max(map(len, right), default=0)
    depths = [len(path) if left[: len(path)] == path else 0 for path in paths(tree)]
    assert accepted_depths(tree, output, position) == depths


@settings(deadline=None)
@given(outputs, outputs, st.integers(0, 3))
def test_a_chain_is_a_tree_without_branches(
    tokens: list[int], output: list[int], position: int
) -> None:
    """Both forms are verified alike."""
    position = min(position, len(output) - 1)
    chain = Draft(tokens)
    tree = Draft(tokens, list(range(-1, len(tokens) - 1)))
    assert num_accepted(chain, output, position) == num_accepted(tree, output, position)
    assert accepted_depths(chain, output, position) == accepted_depths(tree, output, position)


def test_a_parent_must_precede_its_child() -> None:
    """A malformed tree is an error, not a figure."""
    with pytest.raises(DraftError, match="node 0 has parent 1"):
        num_accepted(Draft([1, 2], [1, -1]), [1, 2], 0)


def test_durations_are_counted_with_a_known_clock() -> None:
    """Every call is timed by itself; quantiles are right within 1.2 %."""
    ticks = iter(range(0, 10**9, 1000))
    result = replay_scope(
        Scripted(Draft([]), Draft([])), "d", scope_of([1, 2, 3]), clock=lambda: next(ticks)
    )
    (counts,) = result.counts.values()
    assert {call: t.num_calls for call, t in counts.timings.items()} == {
        "start": 1,
        "propose": 2,
        "commit": 3,
        "finish": 1,
    }
    assert counts.durations()["commit_mean_us"] == 1.0
    assert counts.durations()["commit_p99_us"] == pytest.approx(1.0, rel=0.012)


@settings(deadline=None)
@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=200), st.sampled_from([0.5, 0.99]))
def test_quantiles_of_merged_histograms(durations: list[int], share: float) -> None:
    """Merging two halves gives what all durations give, and the true quantile within 1.2 %."""
    whole, left, right = Timing(), Timing(), Timing()
    whole.add_durations(durations)
    left.add_durations(durations[::2])
    right.add_durations(durations[1::2])
    left.merge(right)
    assert (left.num_calls, left.total_ns, left.buckets) == (
        whole.num_calls,
        whole.total_ns,
        whole.buckets,
    )
    exact = sorted(durations)[math.ceil(share * len(durations)) - 1] / 1000
    assert left.quantile_us(share) == pytest.approx(exact, rel=0.012)


def unit(source: str, subset: str, steps: int, committed: int, **more: int | None) -> UnitResult:
    counts = Counts(requests=1, steps=steps, committed=committed)
    return UnitResult(drafter="d", source=source, model="m", counts={subset: counts}, **more)


def test_sources_pool_and_the_macro_averages() -> None:
    """Within a source sums come first; the macro is the plain mean of the sources' ratios."""
    flat = figures(
        [
            unit("a", "tuning/new", 10, 10, num_bytes=100, num_tokens=10),
            unit("a", "reporting/seen", 10, 50, num_bytes=500, num_tokens=20),
            unit("b", "reporting/new", 1, 5),
            unit("chat", "tuning/new", 1, 100),
        ],
        controls=["chat"],
    )
    assert flat["a/d/tokens_per_step"] == 3
    assert flat["a/d/seen/tokens_per_step"] == 5
    assert flat["a/d/tuning/tokens_per_step"] == 1
    assert math.isnan(flat["a/d/reporting/new/tokens_per_step"])
    assert flat["a/d/bytes_per_token"] == 20
    assert flat["chat/d/tokens_per_step"] == 100
    assert flat["macro/d/tokens_per_step"] == 4
    assert flat["macro/d/reporting/tokens_per_step"] == 5
    assert flat["macro/d/tuning/tokens_per_step"] == 1, "b has no such episode"


def test_a_mean_leaves_out_what_was_not_measured() -> None:
    """NaN is no number to average."""
    assert mean_of_each([{"x": 1.0}, {"x": math.nan}, {"x": 3.0}]) == {"x": 2.0}
    assert math.isnan(mean_of_each([{"x": math.nan}])["x"])


def test_reliability_adds_up() -> None:
    """Two halves give what the whole gives; a probability of 1 has a bin."""
    whole, left, right = Reliability(), Reliability(), Reliability()
    for place, (probability, accepted) in enumerate([(1.0, True), (0.0, False), (0.55, True)]):
        whole.add(probability, accepted=accepted)
        (left, right)[place % 2].add(probability, accepted=accepted)
    left.merge(right)
    assert left == whole
    assert whole.num_nodes[9] == 1
    assert whole.expected_error == pytest.approx(0.45 / 3)
