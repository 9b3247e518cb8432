"""Paceline's draft index through its public calls."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from paceline.benchmarks.replay.base import Draft, Memory, TokenIds
from paceline.caches import TreeBatch
from paceline.caches._native import CorpusSegment, DraftIndex

SESSION_BITS: Final = 62


class PacelineDrafter:
    """One index a scope: a session's contexts, and the scope's shared log.

    Args:
        min_probability: where a path stops, in (0, 1].
        max_branches: most nodes that continue one node; 1 for chains.
        segments: corpora of the scope.
    """

    def __init__(
        self,
        *,
        min_probability: float,
        max_branches: int = 1,
        segments: Sequence[CorpusSegment] = (),
    ) -> None:
        self._max_branches = max_branches
        self._index = DraftIndex(min_probability=min_probability)
        self._segments = segments
        self._handles: dict[int, int] = {}

    def remember(self, scope: str, sequences: Iterable[TokenIds], *, capacity: int) -> None:
        """Add sequences to the scope's log, which holds `capacity` tokens, before anything else."""
        scope_id = self._index.scope(scope, capacity=capacity)
        for sequence in sequences:
            self._index.append_shared(scope_id, sequence)

    def start(self, request_id: int, session_id: str, scope: str, prompt_ids: TokenIds) -> None:
        """Index what the session's earlier requests did not hold."""
        scope_id = self._index.scope(scope)
        if self._segments:
            self._index.attach_corpora(scope_id, self._segments)
        self._handles[request_id], _ = self._index.begin(
            prompt_ids,
            read_scopes=_reads(scope_id),
            write_scope=scope_id,
            session=session_key(session_id),
        )

    def propose(self, request_id: int, max_tokens: int) -> Draft:
        """A batch of one."""
        batch = self.propose_batch([request_id], [max_tokens])
        return Draft(batch.token_ids.tolist(), batch.parent.tolist(), batch.prob.tolist())

    def propose_batch(self, request_ids: Sequence[int], max_tokens: Sequence[int]) -> TreeBatch:
        """A tree for each."""
        return TreeBatch(
            *self._index.propose(
                self._handles_of(request_ids),
                np.array(max_tokens, np.int32),
                max_branches=self._max_branches,
            )
        )

    def propose_behind(
        self,
        request_ids: Sequence[int],
        token_ids: Sequence[Sequence[int]],
        max_tokens: Sequence[int],
    ) -> TreeBatch:
        """A chain for each behind tokens that nobody has committed."""
        return TreeBatch(
            *self._index.propose_behind(
                self._handles_of(request_ids),
                np.array(max_tokens, np.int32),
                np.array([token for row in token_ids for token in row], np.int32),
                np.cumsum([0, *map(len, token_ids)], dtype=np.int64),
            )
        )

    def commit(self, request_id: int, token_ids: list[int]) -> None:
        """Append, after the index has scored its last draft against them."""
        self._index.commit(
            np.array([self._handles[request_id]], np.int64),
            np.array(token_ids, np.int32),
            np.array([0, len(token_ids)], np.int64),
        )

    def finish(self, request_id: int) -> None:
        """Add the request to the scope's log."""
        self._index.finish(self._handles.pop(request_id))

    def learned(self, scope: str) -> npt.NDArray[np.float32]:
        """What it has learned of its drafts in the scope: see `DraftIndex.calibration`."""
        scope_id = self._index.scope(scope)
        return self._index.calibration(read_scopes=_reads(scope_id), write_scope=scope_id)

    def go_on_from(self, scope: str, learned: npt.NDArray[np.float32]) -> None:
        """Draft in the scope from what was learned elsewhere."""
        scope_id = self._index.scope(scope)
        self._index.set_calibration(
            read_scopes=_reads(scope_id), write_scope=scope_id, state=learned
        )

    def _handles_of(self, request_ids: Sequence[int]) -> npt.NDArray[np.int64]:
        return np.array([self._handles[request_id] for request_id in request_ids], np.int64)

    def memory(self) -> Memory | None:
        """By the index's own account: shared log and kept contexts."""
        stats = self._index.stats()
        num_tokens = stats["shared_tokens"] + stats["context_tokens"]
        return Memory(stats["bytes"], num_tokens) if num_tokens else None


def _reads(scope_id: int) -> npt.NDArray[np.int32]:
    return np.array([scope_id], np.int32)


def session_key(session_id: str) -> int:
    """Key (> 0) of a session in the index."""
    digest = hashlib.sha256(session_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") % ((1 << SESSION_BITS) - 1) + 1
