"""A suffix automaton that grows at its end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

ROOT: Final = 0


class SuffixAutomaton:
    """All substrings of a sequence of tokens, each state with where it first ended.

    Blumer et al., The smallest automaton recognizing the subwords of a text (1985). Plain Python:
    about two states, each with a dictionary, and 2 to 3 µs a token.
    """

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._length = [0]
        self._first_end = [-1]
        self._last = ROOT

    def extend(self, token_ids: Iterable[int]) -> None:
        """Append tokens. O(1) each, amortised."""
        moves, links, lengths = self._next, self._link, self._length
        for token in token_ids:
            state = len(moves)
            moves.append({})
            links.append(ROOT)
            lengths.append(lengths[self._last] + 1)
            self._first_end.append(len(self.token_ids))
            self.token_ids.append(token)
            walk = self._last
            while walk >= 0 and token not in moves[walk]:
                moves[walk][token] = state
                walk = links[walk]
            if walk >= 0:
                links[state] = self._target(walk, token)
            self._last = state

    def repeated_suffix(self) -> tuple[int, int]:
        """The longest suffix of the sequence that ended earlier too: (first end, length).

        (-1, 0) if there is none. O(1).
        """
        state = self._link[self._last]
        if state <= ROOT:
            return -1, 0
        return self._first_end[state], self._length[state]

    def step(self, state: int, length: int, token: int) -> tuple[int, int]:
        """Follow a text: the longest match ending at `token`, from the match before it.

        A match is (state, its length), (`ROOT`, 0) if nothing matches. O(1) amortised.
        """
        while state > ROOT and token not in self._next[state]:
            state = self._link[state]
            length = self._length[state]
        reached = self._next[state].get(token)
        return (ROOT, 0) if reached is None else (reached, length + 1)

    def first_end(self, state: int) -> int:
        """Index of the last token of the state's first occurrence; -1 at the root."""
        return self._first_end[state]

    def _target(self, walk: int, token: int) -> int:
        """State of the longest suffix before `token` that has occurred; split off if need be."""
        moves, links, lengths = self._next, self._link, self._length
        found = moves[walk][token]
        if lengths[found] == lengths[walk] + 1:
            return found
        clone = len(moves)
        moves.append(moves[found].copy())
        links.append(links[found])
        lengths.append(lengths[walk] + 1)
        self._first_end.append(self._first_end[found])
        while walk >= 0 and moves[walk].get(token) == found:
            moves[walk][token] = clone
            walk = links[walk]
        links[found] = clone
        return clone
