"""The choice of drafted nodes over a batch, held to the plain one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.caches import choose_nodes, count_likelier
from paceline.caches.reference.round_budget import Draft, chances_of, choose, likelier

PROBABILITIES = st.floats(0.0, 1.0, width=32)


@st.composite
def drafts_of_a_batch(draw: st.DrawFn) -> list[Draft]:
    """Chains and trees, their paths likeliest first."""
    batch = []
    for _ in range(draw(st.integers(1, 4))):
        nodes: list[tuple[int, float]] = []
        for _ in range(draw(st.integers(0, 6))):
            nodes.append((draw(st.integers(-1, len(nodes) - 1)), draw(PROBABILITIES)))
            chances = chances_of(nodes)
            if len(chances) > 1 and chances[-1] > chances[-2]:
                nodes.pop()
        batch.append(nodes)
    return batch


def as_arrays(batch: list[Draft]) -> tuple[Any, Any, Any]:
    nodes = [node for draft in batch for node in draft]
    return (
        np.cumsum([0, *map(len, batch)], dtype=np.int64),
        np.array([parent for parent, _ in nodes], np.int32),
        np.array([prob for _, prob in nodes], np.float32),
    )


STEPS = st.lists(st.floats(0.0, 2.0), max_size=8).map(lambda steps: [0.0, *np.cumsum(steps)])
"""What passes take with more and more tokens beside, less what they take with none."""


@given(drafts_of_a_batch(), st.floats(0.5, 10), st.floats(0.01, 5), STEPS, st.floats(0.0, 1.0))
def test_it_chooses_what_trying_every_number_chooses(
    batch: list[Draft], tokens: float, first: float, steps: list[float], each: float
) -> None:
    """The same rate as the best of all numbers of tokens, and the same sums."""
    seconds = [first + step for step in steps]
    base = {"base_tokens": tokens, "token_seconds": each}
    kept, expected, price, yielded = choose_nodes(
        *as_arrays(batch), seconds=np.array(seconds), **base
    )
    plain = choose(batch, seconds=seconds, **base)
    assert expected.tolist() == pytest.approx(plain.expected, abs=1e-9)

    def takes(num: int) -> float:
        beyond = max(0, num - len(seconds) + 1)
        return seconds[num - beyond] + beyond * each

    found, best = int(kept.sum()), sum(plain.num_kept)
    assert yielded / takes(found) == pytest.approx(plain.tokens / takes(best), rel=1e-6)
    if found == best:
        assert kept.tolist() == plain.num_kept
        assert price == pytest.approx(plain.price, rel=1e-6, abs=1e-9)


@given(drafts_of_a_batch(), st.floats(0.0, 1.0))
def test_a_node_never_stays_without_those_before_it(batch: list[Draft], price: float) -> None:
    """What is counted are first nodes, up to the first that is not likelier."""
    found = count_likelier(*as_arrays(batch), price).tolist()
    assert found == [likelier(draft, price) for draft in batch]


@pytest.mark.parametrize(("seconds", "each"), [(0.0, 1.0), (1.0, 0.0)])
def test_without_a_price_nothing_is_too_unlikely(seconds: float, each: float) -> None:
    """A token that costs nothing, or a round of unknown length, cuts no draft."""
    batch: list[Draft] = [[(-1, 0.5), (0, 0.0)], []]
    kept, expected, price, tokens = choose_nodes(
        *as_arrays(batch), base_tokens=2.0, seconds=np.array([seconds]), token_seconds=each
    )
    assert kept.tolist() == [2, 0]
    assert (expected.tolist(), price, tokens) == ([0.5, 0.0], 0.0, 2.5)


def test_alone_on_a_small_cpu_likely_drafts_are_whole() -> None:
    """Where verifying eight tokens takes 1.4 times one, eight of nine in ten are all verified."""
    base = {"base_tokens": 1.0, "seconds": np.ones(1), "token_seconds": 0.4 / 7}
    sure: Draft = [(n - 1, 0.9) for n in range(8)]
    unsure: Draft = [(n - 1, 0.5) for n in range(8)]
    assert choose_nodes(*as_arrays([sure]), **base)[0].tolist() == [8]
    assert 2 <= int(choose_nodes(*as_arrays([unsure]), **base)[0][0]) <= 4


@pytest.mark.parametrize(("chances", "num_kept"), [([0.3, 0.3], 2), ([0.9] * 3, 2), ([0.9] * 5, 5)])
def test_drafts_go_as_far_as_a_step(chances: list[float], num_kept: int) -> None:
    """Two tokens are free and three more take half a pass: a third alone is not worth it."""
    batch: list[Draft] = [[(n - 1, chance) for n, chance in enumerate(chances)]]
    seconds = np.array([1.0, 1.0, 1.0, 1.5, 1.5, 1.5])
    kept, *_ = choose_nodes(*as_arrays(batch), base_tokens=1.0, seconds=seconds, token_seconds=0.25)
    assert kept.tolist() == [num_kept]


def test_of_equal_chances_the_first_nodes_stay() -> None:
    """Over several requests the first ones of those that come first, never one behind a cut one."""
    batch: list[Draft] = [[(-1, 1.0), (0, 1.0)], [(-1, 1.0), (0, 1.0)]]
    kept, *_ = choose_nodes(
        *as_arrays(batch), base_tokens=2.0, seconds=np.array([1.0] * 4 + [9.0]), token_seconds=9.0
    )
    assert kept.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("seconds", "message"),
    [([], "seconds is empty"), ([-1.0], "seconds is -1"), ([1.0, float("nan")], "seconds is nan")],
)
def test_seconds_that_are_none_are_refused(seconds: list[float], message: str) -> None:
    """With the value and the fix."""
    with pytest.raises(ValueError, match=message):
        choose_nodes(
            *as_arrays([[]]), base_tokens=1.0, seconds=np.array(seconds), token_seconds=1.0
        )


@pytest.mark.parametrize(
    ("offsets", "parent", "prob", "message"),
    [
        ([], [], [], "offsets is empty"),
        ([0, 2], [-1], [0.5], "offsets"),
        ([0, 1], [-1, 0], [0.5], "parent is 2 long"),
        ([0, 1], [0], [0.5], "parent is 0 at 0; give -1 or an earlier node"),
        ([0, 1, 2], [-1, 0], [0.5, 0.5], "parent is 0 at 1"),
        ([0, 1], [-1], [1.5], "prob is 1.5"),
        ([0, 1], [-1], [float("nan")], "prob is nan"),
    ],
)
def test_what_is_no_draft_is_refused(
    offsets: list[int], parent: list[int], prob: list[float], message: str
) -> None:
    """With the value and the fix."""
    arrays = np.array(offsets, np.int64), np.array(parent, np.int32), np.array(prob, np.float32)
    with pytest.raises(ValueError, match=message):
        count_likelier(*arrays, 0.5)
