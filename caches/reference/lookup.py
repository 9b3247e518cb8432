"""Logs of `ReferenceIndex`, and the places in them that end like a context: linear scans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from paceline.caches.reference.segment import Place, ReferenceSegment
from paceline.caches.tree import Source

BORDER: Final = -1
LONG_MATCH: Final = 3
MAX_MATCH: Final = 64
_MAX_SIMILAR: Final = 16


class Log:
    """Tokens at absolute positions; with a capacity the oldest are forgotten.

    Without one (None) it is a request's context, which has no borders.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.tokens: list[int] = []
        self.said: list[bool] = []
        self.begin = 0
        self._capacity = capacity

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.begin + len(self.tokens)

    def at(self, position: int) -> int:
        """Token at a live position."""
        return self.tokens[position - self.begin]

    def was_said(self, position: int) -> bool:
        """Whether the model said the token at a live position, rather than read it."""
        return self.said[position - self.begin]

    def append(self, tokens: Sequence[int], *, said: bool) -> None:
        """Add tokens that the model said or read."""
        self.tokens += tokens
        self.said += [said] * len(tokens)

    def keep_first(self, num_tokens: int) -> None:
        """Forget the tokens from `num_tokens` on."""
        del self.tokens[num_tokens:]
        del self.said[num_tokens:]

    def forget_first(self, num_tokens: int) -> None:
        """Forget the oldest tokens."""
        del self.tokens[:num_tokens]
        del self.said[:num_tokens]
        self.begin += num_tokens

    def append_sequence(self, tokens: Sequence[int], num_read: int) -> None:
        """Add a sequence and its border, or its end if it is too long."""
        if not tokens:
            return
        if self._capacity is not None:
            # Cut first, as natively: what was never held takes no positions.
            num_cut = max(0, len(tokens) - (self._capacity - 1))
            tokens, num_read = tokens[num_cut:], max(0, num_read - num_cut)
        self.append(tokens[:num_read], said=False)
        self.append(tokens[num_read:], said=True)
        self.append([BORDER], said=False)
        self.forget_first(max(0, len(self.tokens) - (self._capacity or len(self.tokens))))


@dataclass(slots=True)
class Reading:
    """What a request may draft from: logs, the first its own context, their sources, corpora."""

    logs: list[Log | None]
    sources: list[Source]
    segments: list[ReferenceSegment]

    def source(self, number: int) -> Source:
        """Of the log of that number, or past them of a segment."""
        return self.sources[number] if number < len(self.logs) else Source.CORPUS

    def at(self, number: int, position: int) -> int:
        """Token of a segment, by number."""
        return self.segments[number - len(self.logs)].at(position)


@dataclass(slots=True)
class Candidate:
    """An earlier place, in log number `log`, whose next token is a guess at the context's next."""

    log: int
    next: int
    match_length: int
    num_similar: int
    rank: int = 0
    misses: int = 0
    num_followed: int = 0
    guess: int = BORDER
    features: tuple[int, ...] = ()
    share: float = 0.0
    place: Place | None = None
    """Of a corpus: what it stands for."""


def match_length(log: Log, position: int, context: Sequence[int]) -> int:
    """Tokens before `position` that equal the end of `context`, at most `MAX_MATCH`."""
    limit = min(MAX_MATCH, len(context), position - log.begin)
    length = 0
    while length < limit and log.at(position - 1 - length) == context[-1 - length]:
        length += 1
    return length


def num_similar(log: Log, position: int, context: Sequence[int], length: int) -> int:
    """Of the 16 tokens before the one that ended a match, how many are equal."""
    limit = min(length + 1 + _MAX_SIMILAR, len(context), position - log.begin)
    return sum(log.at(position - 1 - i) == context[-1 - i] for i in range(length + 1, limit))


def find_candidates(log: Log, number: int, context: Sequence[int], most: int) -> list[Candidate]:
    """The newest places that match by three tokens or more, then those that match by fewer.

    A place that is looked at and not taken takes a candidate's room too.
    """
    found: list[Candidate] = []
    for shortest, below in ((LONG_MATCH, MAX_MATCH + 1), (1, LONG_MATCH)):
        num_visits = rank = 0
        most_visits = most - len(found)
        for position in range(log.end - 1, log.begin, -1):
            if num_visits == most_visits:
                break
            length = match_length(log, position, context)
            if length < shortest:
                continue
            num_visits += 1
            if length < below and log.at(position) != BORDER:
                similar = num_similar(log, position, context, length)
                found.append(Candidate(number, position, length, similar, rank))
                rank += 1
    return found


def find_in_corpora(reading: Reading, context: Sequence[int], most: int) -> list[Candidate]:
    """Places of every segment."""
    found: list[Candidate] = []
    for number, segment in enumerate(reading.segments, len(reading.logs)):
        for place in segment.spread(context, most):
            length = place.match_length
            limit = min(length + 1 + _MAX_SIMILAR, len(context), place.next)
            equal = sum(
                segment.at(place.next - 1 - i) == context[-1 - i] for i in range(length + 1, limit)
            )
            found.append(Candidate(number, place.next, length, equal, place=place))
    return found
