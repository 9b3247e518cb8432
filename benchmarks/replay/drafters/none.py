"""No speculation."""

from __future__ import annotations

from paceline.benchmarks.replay.base import EMPTY, Draft, Memory, TokenIds


class NoDrafter:
    """Drafts nothing: one token a step."""

    def start(self, request_id: int, session_id: str, scope: str, prompt_ids: TokenIds) -> None:
        """Nothing to do."""

    def propose(self, request_id: int, max_tokens: int) -> Draft:
        """An empty draft."""
        return EMPTY

    def commit(self, request_id: int, token_ids: list[int]) -> None:
        """Nothing to do."""

    def finish(self, request_id: int) -> None:
        """Nothing to do."""

    def memory(self) -> Memory | None:
        """None is held."""
        return None
