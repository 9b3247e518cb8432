"""Hierarchy Drafting: three databases of phrases, asked in the order of temporal locality."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeAlias

import numpy as np

from paceline.benchmarks.replay.base import Draft, Memory, TokenIds
from paceline.benchmarks.replay.drafters.branches import join
from paceline.benchmarks.replay.drafters.context import Context
from paceline.benchmarks.replay.drafters.novelty import Novelty

PHRASE_TOKENS: Final = 4
NUM_PHRASES: Final = 8
NUM_RECENT_PLACES: Final = 64

Phrase: TypeAlias = tuple[int, ...]


class FrequentPhrases:
    """For each token the phrases that followed it most often. O(1) a token added."""

    def __init__(self) -> None:
        self._counts: dict[int, dict[Phrase, int]] = {}
        self._best: dict[int, list[Phrase]] = {}

    def add(self, token_ids: list[int]) -> None:
        """Count every token's following phrase."""
        for begin in range(len(token_ids) - PHRASE_TOKENS):
            key = token_ids[begin]
            phrase = tuple(token_ids[begin + 1 : begin + 1 + PHRASE_TOKENS])
            counts = self._counts.setdefault(key, {})
            count = counts[phrase] = counts.get(phrase, 0) + 1
            best = self._best.setdefault(key, [])
            if phrase not in best:
                if len(best) == NUM_PHRASES:
                    if counts[best[-1]] >= count:
                        continue
                    best.pop()
                best.append(phrase)
            place = best.index(phrase)
            while place and counts[best[place - 1]] < count:
                best[place], place = best[place - 1], place - 1
            best[place] = phrase

    def following(self, token: int) -> list[Phrase]:
        """The most frequent phrases after `token`, most frequent first."""
        return self._best.get(token, [])


class HierarchyDrafter:
    """Phrases from the context first, then the model's own, then common ones; verified together.

    Cho et al., Hierarchy Drafting (arXiv 2502.05609), from the paper alone. Taken from it: three
    databases, dependent on the context, on the model and on statistics of text; looked up in that
    order, from the highest temporal locality to the lowest, until enough phrases are found; all
    phrases verified in parallel and the longest accepted one kept. Chosen here: a phrase is 4
    tokens after a key of one, 8 phrases a step (as many as the protocol's 32 tokens hold); the
    context's are its most recent ones; the model's are the most frequent ones of the scope's
    earlier replies; the statistics are those of everything earlier requests of the scope read and
    said, where the paper takes a public corpus, which these traces have not.
    """

    def __init__(self) -> None:
        self._contexts: dict[int, tuple[str, int, Context]] = {}
        self._replies = FrequentPhrases()
        self._everything = FrequentPhrases()
        self._novelty = Novelty()

    def start(self, request_id: int, session_id: str, scope: str, prompt_ids: TokenIds) -> None:
        """Count what is new in the prompt."""
        self._everything.add(self._novelty.new_part(session_id, prompt_ids).tolist())
        self._contexts[request_id] = (session_id, len(prompt_ids), Context(prompt_ids))

    def propose(self, request_id: int, max_tokens: int) -> Draft:
        """A tree of at most eight phrases."""
        _, _, context = self._contexts[request_id]
        phrases: dict[Phrase, None] = {}
        for phrase in self._candidates(context.token_ids):
            phrases[phrase] = None
            if len(phrases) == NUM_PHRASES:
                break
        return join(phrases, max_tokens)

    def commit(self, request_id: int, token_ids: list[int]) -> None:
        """Append to the context."""
        self._contexts[request_id][2].extend(token_ids)

    def finish(self, request_id: int) -> None:
        """Count the reply's phrases."""
        session_id, num_prompt, context = self._contexts.pop(request_id)
        reply = context.token_ids[num_prompt:].tolist()
        self._replies.add(reply)
        self._everything.add(reply)
        self._novelty.remember(session_id, context.token_ids)

    def memory(self) -> Memory | None:
        """Python's objects are no measure of the method."""
        return None

    def _candidates(self, token_ids: TokenIds) -> Iterator[Phrase]:
        last = len(token_ids) - 1
        places = np.flatnonzero(token_ids[:last] == token_ids[last])
        for place in places[: -NUM_RECENT_PLACES - 1 : -1]:
            yield tuple(token_ids[place + 1 : place + 1 + PHRASE_TOKENS].tolist())
        key = int(token_ids[last])
        yield from self._replies.following(key)
        yield from self._everything.following(key)
