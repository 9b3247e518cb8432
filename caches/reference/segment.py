"""What `CorpusSegment` answers, by scanning the whole text: slow and plain, to hold it against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

BORDER: Final = -1
MAX_MATCH: Final = 64
MAX_FOUND: Final = 64
MAX_COUNTED: Final = 256
NUM_SAMPLES: Final = 32
MAX_BACK_OFFS: Final = 16
PLACES_PER_MATCH: Final = 8


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


@dataclass(frozen=True, slots=True)
class Place:
    """A place that stands for `count` of `total` places of its match, beside others of its token.

    Attributes:
        next: position of the next token.
        match_length: of all those places.
        count: places with that match and that next token.
        total: places with that match.
        num_alike: places given for that match and that next token.
    """

    next: int
    match_length: int
    count: int
    total: int
    num_alike: int


class ReferenceSegment:
    """A corpus searched place by place. Every query is O(num_positions * match length).

    Args:
        token_ids: ids >= 0, with -1 between sequences.
    """

    def __init__(self, token_ids: Sequence[int]) -> None:
        self._text = [BORDER]
        for token in (*token_ids, BORDER):
            if token != BORDER or self._text[-1] != BORDER:  # several borders count as one
                self._text.append(token)
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

    def at(self, position: int) -> int:
        """Token at a position, a border past the end."""
        return self._text[position] if position < len(self._text) else BORDER

    def spread(self, context: Sequence[int], max_places: int) -> list[Place]:
        """What the native `CorpusSegment::spread` gives, in its order."""
        matches = self.matches(context)
        in_order = sorted(matches, key=lambda place: self._text[place - 1 :: -1])
        found: list[Place] = []
        seen: set[int] = set()
        lengths = sorted(set(matches.values()), reverse=True)
        for length in lengths[: MAX_BACK_OFFS + 1]:
            alike = [place for place in in_order if matches[place] >= length]
            is_sampled = len(alike) > MAX_COUNTED
            if is_sampled:
                looked_at = [alike[i * len(alike) // NUM_SAMPLES] for i in range(NUM_SAMPLES)]
            else:
                looked_at = alike
            found += self._spread(
                [place for place in looked_at if self._text[place] not in seen],
                (length, len(alike), len(looked_at)),
                min(max_places, MAX_FOUND) - len(found),
            )
            seen.update(self._text[place] for place in looked_at)
            if is_sampled or len(found) == min(max_places, MAX_FOUND):
                break
        return found

    def _spread(self, fresh: list[int], match: tuple[int, int, int], room: int) -> list[Place]:
        """Places of tokens not met before; `match`: its length, its places, those looked at."""
        length, total, num_looked_at = match
        by_token: dict[int, list[int]] = {}
        for place in fresh:
            by_token.setdefault(self._text[place], []).append(place)
        found: list[Place] = []
        for places in sorted(by_token.values(), key=lambda places: -len(places)):
            count = len(places) * total // num_looked_at
            wanted = (2 * count * PLACES_PER_MATCH + total) // (2 * total)
            num_alike = min(wanted, len(places), room - len(found))
            if num_alike == 0:
                break
            last = -1
            for i, place in enumerate(places):
                if i * num_alike // len(places) != last:
                    found.append(Place(place, length, count, total, num_alike))
                    last = i * num_alike // len(places)
        return found

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
