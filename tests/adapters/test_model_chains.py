"""A model's chains joined with what memory drafts behind them."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paceline.adapters.model_chains import Continued, Supposed, joined
from paceline.caches import Source, TokenTree, TreeBatch
from paceline.caches.tree import ROOT


@st.composite
def trees(draw: st.DrawFn) -> TokenTree:
    """Any tree of memory's, of distinct tokens."""
    num_nodes = draw(st.integers(0, 4))
    parents = [draw(st.integers(-1, i - 1)) for i in range(num_nodes)]
    first = draw(st.integers(0, 900)) * 10
    return TokenTree(
        np.arange(first, first + num_nodes, dtype=np.int32),
        np.array(parents, np.int32),
        np.full(num_nodes, 0.5, np.float32),
        np.full(num_nodes, Source.TENANT, np.uint8),
    )


def batch_of(members: list[TokenTree]) -> TreeBatch:
    nothing = TokenTree.empty()
    return TreeBatch(
        np.cumsum([0, *map(len, members)], dtype=np.int64),
        np.concatenate([nothing.token_ids, *(tree.token_ids for tree in members)]),
        np.concatenate([nothing.parent, *(tree.parent for tree in members)]),
        np.concatenate([nothing.prob, *(tree.prob for tree in members)]),
        np.concatenate([nothing.source, *(tree.source for tree in members)]),
    )


def paths(tree: TokenTree, ahead: tuple[int, ...] = ()) -> list[tuple[tuple[int, ...], int]]:
    """Of each node the tokens that lead to it, and its source."""
    found: list[tuple[tuple[int, ...], int]] = []
    columns = (tree.token_ids.tolist(), tree.parent.tolist(), tree.source.tolist())
    for token, parent, source in zip(*columns, strict=True):
        above = ahead if parent == ROOT else found[parent][0]
        found.append(((*above, token), source))
    return found


@given(
    own=st.lists(trees(), min_size=1, max_size=4),
    asked=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), trees()), max_size=6),
)
def test_each_row_has_its_own_tree_and_all_that_goes_on(
    own: list[TokenTree], asked: list[tuple[int, int, TokenTree]]
) -> None:
    """The model's tokens lead to what memory drafts behind them; nothing found adds nothing."""
    asked = sorted(((row % len(own), n, tree) for row, n, tree in asked), key=lambda it: it[0])
    beginnings = [list(range(10_000, 10_000 + length)) for _, length, _ in asked]
    supposed = Supposed([row for row, _, _ in asked], beginnings, [8] * len(asked))
    continued = Continued(supposed, batch_of([tree for _, _, tree in asked]))
    for row, tree in enumerate(joined(batch_of(own), continued).trees()):
        tree.validate()
        expected = Counter(paths(own[row]))
        for (of, _, found), beginning in zip(asked, beginnings, strict=True):
            if of == row and len(found):
                led = TokenTree.chain(beginning, source=Source.MODEL)
                expected.update([*paths(led), *paths(found, tuple(beginning))])
        assert Counter(paths(tree)) == expected
        assert (tree.prob[tree.source != Source.MODEL] == 0.5).all()
