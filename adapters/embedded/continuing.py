"""What memory drafts behind the tokens of a model: where the model was right, memory knows the way.

A model drafts one more token of a branch in each pass; memory, once it is told that token, drafts
as many as it remembers in some microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from paceline.adapters.embedded.draft_places import DraftWish, TokenPath, paths_of
from paceline.adapters.model_chains import Continued, Supposed, joined
from paceline.caches import Source, TokenTree, TreeBatch

MOST_ASKED: Final = 8
"""Tokens of the model's behind which memory is asked, for each request and pass."""


class Memory(Protocol):
    """What of a `Speculator` is asked."""

    def __contains__(self, request_id: str) -> bool: ...

    def propose_behind(
        self,
        request_ids: Sequence[str],
        token_ids: Sequence[Sequence[int]],
        *,
        max_tokens: Sequence[int],
    ) -> TreeBatch:
        """What would be drafted if `token_ids` were committed, as `Speculator` has it."""
        ...


class Continuing:
    """Memory's drafts of a round, which grow behind what the model drafts.

    Args:
        memory: None for none, which drafts nothing more.
        wishes: of the round.

    Attributes:
        retrieved: memory's draft for each wish. What it drafts behind the model's tokens stands
            behind nodes of `Source.MODEL`, which `Fusion` only goes through.
    """

    def __init__(self, memory: Memory | None, wishes: Sequence[DraftWish]) -> None:
        self.retrieved: list[TokenTree] = [wish.retrieved for wish in wishes]
        self._memory = memory
        self._wishes = wishes
        self._asked: list[set[TokenPath]] = [set() for _ in wishes]

    def go_on(self, trees: Sequence[TokenTree]) -> bool:
        """Ask memory behind those of the model's tokens where it was not asked yet.

        One native call. O(nodes * depth).

        Args:
            trees: fused drafts, one for each wish, their nodes the likeliest path first.

        Returns:
            Whether it had anything to draft there.
        """
        memory = self._memory
        if memory is None:
            return False
        supposed = Supposed([], [], [])
        for row, (wish, tree) in enumerate(zip(self._wishes, trees, strict=True)):
            if not wish.max_recalled or wish.request_id not in memory:
                continue
            for path in self._unasked(row, tree):
                supposed.rows.append(row)
                supposed.token_ids.append(list(path))
                supposed.max_tokens.append(min(wish.max_recalled, wish.max_tokens - len(path)))
        if not supposed.rows:
            return False
        found = memory.propose_behind(
            [self._wishes[row].request_id for row in supposed.rows],
            supposed.token_ids,
            max_tokens=supposed.max_tokens,
        )
        if not len(found.token_ids):
            return False
        batch = joined(TreeBatch.of(self.retrieved), Continued(supposed, found))
        self.retrieved = batch.trees()
        return True

    def _unasked(self, row: int, tree: TokenTree) -> list[TokenPath]:
        paths = paths_of(tree)
        asked = self._asked[row]
        found = [
            paths[i] for i in (tree.source == Source.MODEL).nonzero()[0].tolist()
            if len(paths[i]) < self._wishes[row].max_tokens and paths[i] not in asked
        ][:MOST_ASKED]  # fmt: skip
        asked.update(found)
        return found
