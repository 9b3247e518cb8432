"""What a draft says of itself."""

from __future__ import annotations

import numpy as np
import pytest

from paceline.caches import TokenTree, TreeBatch

TREE = TokenTree(
    token_ids=np.array([5, 6, 7, 6, 8], np.int32),
    parent=np.array([-1, 0, -1, 2, 1], np.int32),
    prob=np.array([0.5, 0.8, 0.4, 0.5, 0.5], np.float32),
    source=np.zeros(5, np.uint8),
)


def test_a_path_is_as_likely_as_all_its_nodes() -> None:
    """In trees and chains alike; an empty draft has no paths."""
    assert TREE.path_probabilities() == pytest.approx([0.5, 0.4, 0.4, 0.2, 0.2])
    chain = TokenTree.chain([1, 2, 3], prob=[0.5, 0.5, 1.0])
    assert chain.path_probabilities() == pytest.approx([0.5, 0.25, 0.25])
    assert len(TokenTree.empty().path_probabilities()) == 0


@pytest.mark.parametrize(
    ("committed", "num_followed"),
    [([], 0), ([6], 0), ([5], 1), ([5, 6, 8], 3), ([5, 6, 8, 9], 3), ([7, 6, 8], 2), ([5, 8], 1)],
)
def test_committed_tokens_follow_one_path(committed: list[int], num_followed: int) -> None:
    """As far as a branch agrees with them, from the root on."""
    assert TREE.num_followed(committed) == num_followed


def test_the_first_nodes_are_a_tree() -> None:
    """Any number of them, and all of them if there are no more."""
    for num_nodes in (0, 2, 5, 9):
        first = TREE.first(num_nodes)
        first.validate()
        assert first.token_ids.tolist() == TREE.token_ids[:num_nodes].tolist()


CHAIN = TokenTree.chain([1, 2, 3, 4], prob=[0.9, 0.5, 0.0, 1.0])


@pytest.mark.parametrize(
    "trees",
    [(), (CHAIN, TokenTree.empty(), CHAIN.first(2)), (CHAIN, TREE, TokenTree.empty(), TREE)],
    ids=["none", "chains", "trees"],
)
def test_a_batch_says_what_its_trees_say(trees: tuple[TokenTree, ...]) -> None:
    """The first nodes of each are those of the trees one by one."""
    batch = TreeBatch.of([TokenTree.empty(), *trees])
    assert [tree.prob.tolist() for tree in batch.trees()[1:]] == [t.prob.tolist() for t in trees]
    sizes = np.array([3 - i % 3 for i in range(len(batch))], np.int64)
    for found, tree, size in zip(batch.first(sizes).trees(), batch.trees(), sizes, strict=True):
        found.validate()
        assert found.token_ids.tolist() == tree.first(int(size)).token_ids.tolist()
        assert found.parent.tolist() == tree.first(int(size)).parent.tolist()
