"""What `CorpusSegment` answers, by scanning the whole text: slow and plain, to hold it against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

BORDER: Final = -1
MAX_MATCH: Final = 64


@dataclass(frozen=True, slots=True)
class Guess:
    """A next token and what speaks for it.

    Attributes:
        token: the token.
        match_length: longest match after which it came.
        count: places with that match whose next token it is.
        total: places with that match.
    """

    token: int
    match_length: int
    count: int
    total: int


class ReferenceSegment:
    """A corpus searched place by place. Every query is O(num_positions * match length).

    Args:
        token_ids: ids >= 0, with -1 between sequences.
    """

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._text = [BORDER, *token_ids, BORDER]
        self._places = [
            at
            for at in range(1, len(self._text))
            if self._text[at] != BORDER and self._text[at - 1] != BORDER
        ]

    def matches(self, context: Sequence[int]) -> dict[int, int]:
        """Match length of every place whose last token is the context's, by position."""
        lengths = {place: self._match_length(place, context) for place in self._places}
        return {place: length for place, length in lengths.items() if length}

    def guesses(self, context: Sequence[int]) -> list[Guess]:
        """Every token that came after the context's end, at the longest match that shows it.

        Longest match first, then most frequent, then smallest token.
        """
        matches = self.matches(context)
        found: dict[int, Guess] = {}
        for length in sorted(set(matches.values()), reverse=True):
            alike = [place for place, matched in matches.items() if matched >= length]
            for token, count in Counter(self._text[place] for place in alike).items():
                found.setdefault(token, Guess(token, length, count, len(alike)))
        return sorted(found.values(), key=lambda it: (-it.match_length, -it.count, it.token))

    def follow(self, context: Sequence[int], drafted: Sequence[int]) -> list[tuple[int, int]]:
        """(match length, number of places) at the context's end and after each drafted token."""
        matches = self.matches(context)
        longest = max(matches.values(), default=0)
        places = [place for place, length in matches.items() if length == longest]
        steps = [(longest, len(places))]
        for token in drafted:
            places = [
                place + 1
                for place in places
                if self._text[place] == token and self._text[place + 1] != BORDER
            ]
            longest = longest + 1 if places else 0
            steps.append((longest, len(places)))
        return steps

    def _match_length(self, place: int, context: Sequence[int]) -> int:
        length = 0
        while length < min(MAX_MATCH, len(context)):
            token = self._text[place - 1 - length]
            if token == BORDER or token != context[-1 - length]:
                break
            length += 1
        return length
