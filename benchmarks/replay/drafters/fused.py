"""Memory and a small model, each alone or both in one draft, as the embedded engine fuses them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from paceline.adapters.embedded.draft_places import DraftWish
from paceline.adapters.embedded.drafts import FUSED_BRANCHES
from paceline.adapters.embedded.model_drafter import ModelDrafter
from paceline.adapters.embedded.target import Target
from paceline.benchmarks.replay.base import Draft, Memory, TokenIds
from paceline.benchmarks.replay.drafters.context import Context
from paceline.benchmarks.replay.drafters.paceline import PacelineDrafter
from paceline.caches import TokenTree, TreeBatch
from paceline.caches.tree import Source

KEY: Final = 1
"""A drafter serves one scope, whose requests share what fusion learns."""


class BoundedMemory(PacelineDrafter):
    """Memory alone, at most so many nodes a step.

    Args:
        num_nodes: most nodes.
        min_probability: where a path stops.
        max_branches: most nodes that continue one.
    """

    def __init__(self, num_nodes: int, *, min_probability: float, max_branches: int) -> None:
        super().__init__(min_probability=min_probability, max_branches=max_branches)
        self._num_nodes = num_nodes

    def propose(self, request_id: int, max_tokens: int) -> Draft:
        """A batch of one."""
        return super().propose(request_id, min(max_tokens, self._num_nodes))


class _Behind:
    """What the engine's drafter asks of its memory, of this one.

    Args:
        memory: its requests have numbers.
    """

    def __init__(self, memory: PacelineDrafter) -> None:
        self._memory = memory

    def __contains__(self, request_id: str) -> bool:
        """All are known."""
        return True

    def propose_behind(
        self,
        request_ids: Sequence[str],
        token_ids: Sequence[Sequence[int]],
        *,
        max_tokens: Sequence[int],
    ) -> TreeBatch:
        """A chain for each."""
        return self._memory.propose_behind(
            [int(each) for each in request_ids], token_ids, max_tokens
        )


class FusedDrafter:
    """A small model, with memory beside it or without, at most so many nodes a step.

    Args:
        model: drafts; its tokenizer is the one that the traces are rendered with.
        num_nodes: most nodes.
        memory: whether memory drafts too.
        min_probability: where a path stops.
        max_branches: most nodes that continue one; 1 for chains.
        max_steps: most passes of the model a step.
    """

    def __init__(
        self,
        model: Target,
        num_nodes: int,
        *,
        memory: bool,
        min_probability: float,
        max_branches: int,
        max_steps: int,
    ) -> None:
        branches = max(max_branches, FUSED_BRANCHES)  # as the engine has a model judge them
        self._memory = (
            BoundedMemory(num_nodes, min_probability=min_probability, max_branches=branches)
            if memory
            else None
        )
        self._model = ModelDrafter(
            model,
            model,
            max_steps=max_steps,
            max_branches=max_branches,
            min_probability=min_probability,
            memory=None if self._memory is None else _Behind(self._memory),
        )
        self._num_nodes = num_nodes
        self._contexts: dict[int, Context] = {}

    @property
    def num_passes(self) -> int:
        """Forward passes of the model so far."""
        return self._model.num_passes

    def start(self, request_id: int, session_id: str, scope: str, prompt_ids: TokenIds) -> None:
        """Open a request; the model reads its prompt with the first proposal."""
        if self._memory is not None:
            self._memory.start(request_id, session_id, scope, prompt_ids)
        self._model.begin(str(request_id))
        self._contexts[request_id] = Context(prompt_ids)

    def propose(self, request_id: int, max_tokens: int) -> Draft:
        """A batch of one, greedy."""
        retrieved = TokenTree.empty()
        if self._memory is not None:
            retrieved = _tree(self._memory.propose(request_id, max_tokens))
        wish = DraftWish(
            request_id=str(request_id),
            key=KEY,
            tokens=self._contexts[request_id].token_ids,
            retrieved=retrieved,
            max_tokens=min(max_tokens, self._num_nodes),
            max_recalled=self._num_nodes,
        )
        tree = self._model.propose([wish])[0]
        return Draft(tree.token_ids.tolist(), tree.parent.tolist(), tree.prob.tolist())

    def commit(self, request_id: int, token_ids: list[int]) -> None:
        """Append verified tokens."""
        if self._memory is not None:
            self._memory.commit(request_id, token_ids)
        self._contexts[request_id].extend(token_ids)

    def finish(self, request_id: int) -> None:
        """Close a request."""
        if self._memory is not None:
            self._memory.finish(request_id)
        self._model.finish(str(request_id))
        del self._contexts[request_id]

    def memory(self) -> Memory | None:
        """Of memory, by its own account."""
        return None if self._memory is None else self._memory.memory()


def _tree(draft: Draft) -> TokenTree:
    assert draft.parent is not None
    assert draft.prob is not None
    return TokenTree(
        np.array(draft.token_ids, np.int32),
        np.array(draft.parent, np.int32),
        np.array(draft.prob, np.float32),
        np.full(len(draft.token_ids), Source.WORKLOAD, np.uint8),
    )
