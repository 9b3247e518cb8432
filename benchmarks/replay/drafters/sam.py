"""SAM decoding: the longest suffix match in the request or in earlier replies."""

from __future__ import annotations

from typing import Final

from paceline.benchmarks.replay.base import EMPTY, Draft, Memory, TokenIds
from paceline.benchmarks.replay.drafters.automaton import ROOT, SuffixAutomaton

STATIC_BIAS: Final = 5


class SamDrafter:
    """A dynamic automaton of the request, a static one of a corpus; the longer match drafts.

    Hu et al., SAM Decoding (arXiv 2411.10666). The static match must be longer by `STATIC_BIAS`
    tokens, because text of the request itself is copied more often. Drafts are what followed the
    matched suffix where it first occurred. Its corpus is given beforehand; here it is what a replay
    may know, the scope's earlier replies, added when they are finished. Where the match is short
    the paper hands over to an auxiliary drafter, which a replay has not: any match drafts.

    The dynamic automaton is kept for the session's next request and extended while that begins with
    the same tokens, else built anew: with a prompt cut at its front that is every request.

    Args:
        num_tokens: tokens drafted.
    """

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._static = SuffixAutomaton()
        self._num_replies = 0
        self._dynamic = SuffixAutomaton()
        self._session_id = ""
        self._num_prompt = 0
        self._match = (ROOT, 0)

    def start(self, request_id: int, session_id: str, scope: str, prompt_ids: TokenIds) -> None:
        """Extend or build the dynamic automaton, and match the prompt's end in the static one."""
        prompt = prompt_ids.tolist()
        known = self._dynamic.token_ids
        if session_id != self._session_id or prompt[: len(known)] != known:
            self._dynamic = SuffixAutomaton()
            self._session_id = session_id
        self._dynamic.extend(prompt[len(self._dynamic.token_ids) :])
        self._num_prompt = len(prompt)
        self._match = (ROOT, 0)
        self._follow(prompt)

    def propose(self, request_id: int, max_tokens: int) -> Draft:
        """A chain of what followed the better match."""
        most = min(self._num_tokens, max_tokens)
        end, length = self._dynamic.repeated_suffix()
        state, static_length = self._match
        if length >= static_length - STATIC_BIAS:
            if length:
                return Draft(self._dynamic.token_ids[end + 1 : end + 1 + most])
            if not static_length:
                return EMPTY
        begin = self._static.first_end(state) + 1
        following = self._static.token_ids[begin : begin + most]
        border = next((i for i, token in enumerate(following) if token < 0), len(following))
        return Draft(following[:border])

    def commit(self, request_id: int, token_ids: list[int]) -> None:
        """Extend the dynamic automaton and the static match."""
        self._dynamic.extend(token_ids)
        self._follow(token_ids)

    def finish(self, request_id: int) -> None:
        """Add the reply to the static automaton, closed by a token that occurs nowhere else."""
        self._num_replies += 1
        self._static.extend(self._dynamic.token_ids[self._num_prompt :])
        self._static.extend([-self._num_replies])

    def memory(self) -> Memory | None:
        """Python's objects are no measure of the method."""
        return None

    def _follow(self, token_ids: list[int]) -> None:
        state, length = self._match
        for token in token_ids:
            state, length = self._static.step(state, length, token)
        self._match = (state, length)
