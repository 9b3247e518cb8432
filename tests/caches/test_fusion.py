"""Fusion of retrieval drafts with a model drafter's, held to the plain one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.caches._native import FusedBatch, Fusion
from paceline.caches.reference.fusion import FusedTree, Mixer, Node, Path, Retrieved, View
from paceline.caches.tree import ROOT, Source

WIDTH = 3
TOKENS = st.integers(0, 5)
PROBABILITIES = st.floats(0.015625, 0.984375, width=16)


@st.composite
def retrieved_trees(draw: st.DrawFn) -> Retrieved:
    """A tree; of siblings alike the first counts, and some nodes are the model's."""
    nodes: list[tuple[int, int, float, int]] = []
    for _ in range(draw(st.integers(0, 8))):
        parent = draw(st.integers(-1, len(nodes) - 1))
        token = draw(TOKENS)
        nodes.append((token, parent, draw(PROBABILITIES) / 2, draw(st.integers(0, 2))))
    return Retrieved(nodes)


@st.composite
def views(draw: st.DrawFn) -> View:
    """What a drafter read: nothing, or some places that differ."""
    places: list[tuple[int, int, list[tuple[int, float]]]] = []
    for i in range(draw(st.integers(0, 4))):
        parent, token = (ROOT, 0) if i == 0 else (draw(st.integers(0, i - 1)), draw(TOKENS))
        if i > 0 and (parent, token) in {(p, t) for p, t, _ in places[1:]}:
            break
        top = draw(st.lists(TOKENS, min_size=WIDTH, max_size=WIDTH, unique=True))
        left, listed = 1.0, []
        for candidate in top:
            share = left * draw(PROBABILITIES)
            listed.append((candidate, float(np.float32(share))))
            left -= share
        places.append((parent, token, listed))
    return View(places)


def as_arrays(drafts: Sequence[tuple[Retrieved, View]]) -> list[Any]:
    nodes = [node for tree, _ in drafts for node in tree.nodes]
    places = [place for _, view in drafts for place in view.places]
    tops = [entry for _, _, top in places for entry in top]
    return [
        np.cumsum([0, *(len(tree.nodes) for tree, _ in drafts)]).astype(np.int64),
        np.array([node[0] for node in nodes], np.int32),
        np.array([node[1] for node in nodes], np.int32),
        np.array([node[2] for node in nodes], np.float32),
        np.array([node[3] for node in nodes], np.uint8),
        np.cumsum([0, *(len(view.places) for _, view in drafts)]).astype(np.int64),
        np.array([place[0] for place in places], np.int32),
        np.array([place[1] for place in places], np.int32),
        np.array([token for token, _ in tops], np.int32),
        np.array([probability for _, probability in tops], np.float32),
    ]


class Fused:
    """A drafted tree as paths."""

    def __init__(self, answer: Sequence[Any], row: int) -> None:
        offsets, token_ids, parent, prob, source = answer[:5]
        rows = slice(offsets[row], offsets[row + 1])
        self.paths: list[Path] = []
        for token, above in zip(token_ids[rows].tolist(), parent[rows].tolist(), strict=True):
            self.paths.append((*(() if above == ROOT else self.paths[above]), token))
        self.probabilities = prob[rows].tolist()
        self.sources = source[rows].tolist()


def fuse(
    fusion: Fusion, drafts: Sequence[tuple[Retrieved, View]], *, max_tokens: int, max_branches: int
) -> tuple[list[Fused], FusedBatch]:
    answer = fusion.fuse(
        *as_arrays(drafts),
        keys=np.zeros(len(drafts), np.int64),
        max_tokens=np.full(len(drafts), max_tokens, np.int32),
        max_branches=max_branches,
    )
    return [Fused(answer, row) for row in range(len(drafts))], answer[5]


def check(got: Fused, tree: FusedTree, expected: list[Node]) -> None:
    """The nodes are of the tree, with its probabilities, and worth as much as the expected ones."""
    for path, probability, source in zip(got.paths, got.probabilities, got.sources, strict=True):
        node = tree.nodes[path]
        assert probability == pytest.approx(node.probability, abs=1e-5)
        assert source == node.source
    worth = sum(tree.nodes[path].path_probability for path in got.paths)
    assert worth == pytest.approx(sum(node.path_probability for node in expected), abs=1e-5)
    assert len(set(got.paths)) == len(got.paths)


@settings(max_examples=150, deadline=None)
@given(
    drafts=st.lists(st.tuples(retrieved_trees(), views()), min_size=1, max_size=3),
    rounds=st.lists(st.lists(TOKENS, max_size=4), max_size=3),
    max_tokens=st.integers(0, 7),
    max_branches=st.integers(1, 4),
    min_probability=st.sampled_from([0.001, 0.1, 0.3]),
)
def test_fusion_is_what_the_plain_one_says(
    drafts: list[tuple[Retrieved, View]],
    rounds: list[list[int]],
    max_tokens: int,
    max_branches: int,
    min_probability: float,
) -> None:
    """Trees and chains, before and after learning from what was committed."""
    fusion, mixer = Fusion(min_probability=min_probability), Mixer()
    for committed in [*rounds, None]:
        fused, batch = fuse(fusion, drafts, max_tokens=max_tokens, max_branches=max_branches)
        trees = [FusedTree(*draft, mixer, min_probability) for draft in drafts]
        for got, tree in zip(fused, trees, strict=True):
            if max_branches == 1:
                check(got, tree, tree.chain(max_tokens))
                assert all(path == got.paths[-1][: len(path)] for path in got.paths)
            else:
                check(got, tree, tree.tree(max_tokens, max_branches))
        if committed is None:
            return
        ends = np.arange(len(drafts) + 1, dtype=np.int64) * len(committed)
        accepted = fusion.learn(batch, np.array(committed * len(drafts), np.int32), ends)
        for tree in trees:
            tree.learn(committed, mixer)
        right = [tuple(committed[: i + 1]) for i in range(len(committed))]
        assert accepted.tolist() == [sum(p in got.paths for p in right) for got in fused]
    assert len(fusion.state(0)) == 12


ONE_READ = View([(ROOT, 0, [(7, 0.9), (8, 0.05), (9, 0.01)])])


def test_a_chain_begins_in_one_source_and_goes_on_in_the_other() -> None:
    """Memory's first token, on which both agree, leads to what only the drafter has read on."""
    view = View([
        (ROOT, 0, [(7, 0.9), (8, 0.05), (9, 0.01)]),
        (0, 7, [(5, 0.95), (6, 0.01), (4, 0.01)]),
    ])  # fmt: skip
    memory = Retrieved([(7, ROOT, 0.9, int(Source.WORKLOAD)), (3, 0, 0.1, int(Source.WORKLOAD))])
    (chain,), _ = fuse(Fusion(), [(memory, view)], max_tokens=4, max_branches=1)
    assert chain.paths == [(7,), (7, 5)]
    assert chain.sources == [Source.WORKLOAD, Source.MODEL]


def test_a_chain_goes_on_in_memory_behind_the_drafters_tokens() -> None:
    """What memory drafts behind a token that only the drafter has is reached through it."""
    nodes = [(7, ROOT, 0.0, int(Source.MODEL)), (4, 0, 0.9, 1), (5, 1, 0.9, 1)]
    (chain,), _ = fuse(Fusion(), [(Retrieved(nodes), ONE_READ)], max_tokens=4, max_branches=1)
    assert chain.paths == [(7,), (7, 4), (7, 4, 5)]
    assert chain.sources == [Source.MODEL, 1, 1]
    (nothing,), _ = fuse(Fusion(), [(Retrieved(nodes), View([]))], max_tokens=4, max_branches=1)
    assert nothing.paths == []


def test_a_branch_that_the_drafter_finds_implausible_goes() -> None:
    """A doubtful retrieved branch stays where the drafter has not read and goes where it has."""
    memory = Retrieved([(3, ROOT, 0.3, 1), (4, 0, 0.9, 1)])
    alone, seen = (
        fuse(Fusion(), [(memory, view)], max_tokens=4, max_branches=4)[0][0]
        for view in (View([]), ONE_READ)
    )
    assert alone.paths == [(3,), (3, 4)]
    assert seen.paths[0] == (7,)
    assert (3,) not in seen.paths


def test_what_was_learned_belongs_to_its_key() -> None:
    """A key's mix moves towards what was committed, others' stay; it can be kept and forgotten."""
    fusion = Fusion(min_probability=0.001)
    draft = [(Retrieved([(3, ROOT, 0.5, 1)]), ONE_READ)]
    before = fusion.state(5)
    for _ in range(200):
        answer = fusion.fuse(
            *as_arrays(draft),
            keys=np.array([5], np.int64),
            max_tokens=np.array([4], np.int32),
            max_branches=4,
        )
        fusion.learn(answer[5], np.array([3], np.int32), np.array([0, 1], np.int64))
    first = Fused(answer, 0)
    assert first.paths[0] == (3,)
    assert first.probabilities[0] > 0.7
    assert fusion.state(6).tolist() == before.tolist()
    kept = fusion.state(5)
    fusion.forget(5)
    assert fusion.state(5).tolist() == before.tolist()
    fusion.restore(5, kept)
    assert fusion.state(5).tolist() == kept.tolist()


@pytest.mark.parametrize(
    ("number", "value", "message"),
    [
        (2, np.array([0], np.int32), r"parent\[0\] is 0.*a parent comes before its children"),
        (3, np.array([1.5], np.float32), r"prob\[0\] is 1.5.*give probabilities from 0 to 1"),
        (3, np.array([], np.float32), "prob is 0 long; give 1"),
        (6, np.array([0], np.int32), r"place_parent\[0\] is 0; give -1"),
        (9, np.full(3, np.nan, np.float32), r"top_prob\[0\] is nan"),
        (9, np.full(2, 0.5, np.float32), "top_prob is 2 long; give 3"),
        (0, np.array([0, 2], np.int64), r"offsets\[1\] is 2"),
    ],
)
def test_what_is_no_draft_is_refused(number: int, value: Any, message: str) -> None:
    """Wrong arrays are named with their value and what to give."""
    arrays = as_arrays([(Retrieved([(3, ROOT, 0.5, 1)]), ONE_READ)])
    arrays[number] = value
    with pytest.raises(ValueError, match=message):
        Fusion().fuse(
            *arrays, keys=np.zeros(1, np.int64), max_tokens=np.full(1, 4, np.int32), max_branches=2
        )
