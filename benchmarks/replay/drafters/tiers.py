"""Paceline's draft memory as an engine drives it: logs by workload, read as tiers."""

from __future__ import annotations

from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from paceline.benchmarks.replay.base import Draft, Memory, TokenIds
from paceline.caches import DraftIndex
from paceline.caches.tier_settings import MemorySettings


class TiersDrafter:
    """A `Speculator` with one tenant, which is told the workload of each request.

    Args:
        speculator: of one engine.
    """

    def __init__(self, speculator: Speculator) -> None:
        self._speculator = speculator
        self._workload = ""

    @classmethod
    def of_tiers(cls, *, min_probability: float, memory: MemorySettings) -> TiersDrafter:
        """One with a memory of its own.

        Args:
            min_probability: where a chain stops, in (0, 1].
            memory: which tiers there are.
        """
        return cls(Speculator(DraftIndex(min_probability=min_probability), memory=memory))

    def name_workload(self, workload: str) -> None:
        """Of the requests that start from now on."""
        self._workload = workload

    def start(self, request_id: int, session_id: str, scope: str, prompt_ids: TokenIds) -> None:
        """Index what the session's earlier requests did not hold."""
        info = RequestInfo(
            request_id=str(request_id), tenant=scope, workload=self._workload, session=session_id
        )
        self._speculator.begin(info, prompt_ids)

    def propose(self, request_id: int, max_tokens: int) -> Draft:
        """A batch of one."""
        tree = self._speculator.propose([str(request_id)], max_tokens=max_tokens)[0]
        return Draft(tree.token_ids.tolist(), tree.parent.tolist(), tree.prob.tolist())

    def commit(self, request_id: int, token_ids: list[int]) -> None:
        """Append, after the index has scored its last draft against them."""
        self._speculator.commit(str(request_id), token_ids)

    def finish(self, request_id: int) -> None:
        """Add the request to its log."""
        self._speculator.finish(str(request_id))

    def memory(self) -> Memory | None:
        """By the index's own account: logs and kept contexts."""
        stats = self._speculator.stats()
        num_tokens = stats["shared_tokens"] + stats["context_tokens"]
        return Memory(stats["bytes"], num_tokens) if num_tokens else None
