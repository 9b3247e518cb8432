"""How `ReferenceIndex` drafts: the native core's rules again, by linear scans over lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Final

from paceline.caches.reference.calibration import (
    Calibration,
    Cell,
    agreement_bucket,
    depth_bucket,
    length_bucket,
)
from paceline.caches.tree import Source

BORDER: Final = -1
LONG_MATCH: Final = 4
MAX_MATCH: Final = 64
VISITS_PER_CANDIDATE: Final = 4

_MAX_MISSES: Final = 3
_MATCHED_TO_FORGET_MISSES: Final = 16
_MAX_CURSORS: Final = 4
_SHADOW_NODES: Final = 4
_RANK_DISCOUNT: Final = 0.8
_ODDS_FLOOR: Final = 1e-3


class Log:
    """Tokens at absolute positions; with a capacity the oldest are forgotten.

    Without one (None) it is a request's context, which has no borders.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.tokens: list[int] = []
        self.begin = 0
        self._capacity = capacity

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.begin + len(self.tokens)

    def at(self, position: int) -> int:
        """Token at a live position."""
        return self.tokens[position - self.begin]

    def append_sequence(self, tokens: Sequence[int]) -> None:
        """Add a sequence and its border, or its end if it is too long."""
        if not tokens:
            return
        self.tokens += [*tokens, BORDER]
        excess = max(0, len(self.tokens) - (self._capacity or len(self.tokens)))
        del self.tokens[:excess]
        self.begin += excess


@dataclass(slots=True)
class Candidate:
    """An earlier place, in log number `log`, whose next token is a guess at the context's next."""

    log: int
    next: int
    match_length: int
    misses: int = 0
    weight: float = 0.0

    @property
    def source(self) -> Source:
        """Log 0 is the request's own context."""
        return Source.CONTEXT if self.log == 0 else Source.SHARED


@dataclass(slots=True)
class Cursor:
    """A place that drafting follows from round to round."""

    log: int
    next: int
    num_matched: int
    misses: int


@dataclass(frozen=True, slots=True)
class Node:
    """One drafted token; `cell` is where its probability is kept."""

    token: int
    probability: float
    source: Source
    cell: Cell


@dataclass(slots=True)
class Draft:
    """The last draft of a request and what it takes to score it."""

    nodes: list[Node] = field(default_factory=list)
    votes: list[tuple[int, Cell]] = field(default_factory=list)
    num_issued: int = 0
    num_scored: int = 0
    lead: Cursor | None = None


def match_length(log: Log, position: int, context: Sequence[int]) -> int:
    """Tokens before `position` that equal the end of `context`, at most `MAX_MATCH`."""
    limit = min(MAX_MATCH, len(context), position - log.begin)
    length = 0
    while length < limit and log.at(position - 1 - length) == context[-1 - length]:
        length += 1
    return length


def find_candidates(log: Log, number: int, context: Sequence[int], most: int) -> list[Candidate]:
    """The newest places that match by four tokens or more, then those that match by fewer."""
    found: list[Candidate] = []
    for shortest, below in ((LONG_MATCH, MAX_MATCH + 1), (1, LONG_MATCH)):
        num_visits = 0
        for position in range(log.end - 1, log.begin, -1):
            if num_visits == most * VISITS_PER_CANDIDATE or len(found) == most:
                break
            length = match_length(log, position, context)
            if length < shortest:
                continue
            num_visits += 1
            if length < below and log.at(position) != BORDER:
                found.append(Candidate(number, position, length))
    return found


def draft(
    logs: Sequence[Log | None],
    cursors: Sequence[Cursor],
    calibration: Calibration,
    *,
    max_tokens: int,
    max_candidates: int,
    min_probability: float,
) -> Draft:
    """A chain of at most `max_tokens` nodes; logs[0] is the request's own context."""
    made = Draft()
    if max_tokens == 0:
        return made
    candidates = _gather(logs, cursors, max_candidates)
    _weigh(candidates, logs, calibration, made)
    cumulative = 1.0
    num_shadows = 0
    while len(made.nodes) < max_tokens and num_shadows < _SHADOW_NODES:
        candidates = _extend(candidates, logs, calibration, made)
        if not candidates:
            break
        cumulative *= made.nodes[-1].probability
        if num_shadows or cumulative < min_probability:
            num_shadows += 1
        else:
            made.num_issued += 1
    return made


def score(scored: Draft, committed: Sequence[int], calibration: Calibration) -> int:
    """Learn from what was committed after a draft; returns how many issued nodes were right."""
    for token, cell in scored.votes:
        calibration.trust.record(cell, hit=token == committed[0])
    scored.votes = []
    num_accepted = 0
    for token in committed:
        if scored.num_scored >= len(scored.nodes):
            break
        node = scored.nodes[scored.num_scored]
        num_accepted += node.token == token and scored.num_scored < scored.num_issued
        scored.num_scored += 1
        calibration.acceptance.record(node.cell, hit=node.token == token)
        if node.token != token:
            scored.nodes = []
    return num_accepted


def follow(
    followed: Draft,
    cursors: Sequence[Cursor],
    logs: Sequence[Log | None],
    committed: Sequence[int],
) -> list[Cursor]:
    """The cursors, the draft's lead first, moved past committed tokens."""
    lead, followed.lead = followed.lead, None
    kept: list[Cursor] = []
    for cursor in [lead, *cursors] if lead else cursors:
        moved = _advanced(cursor, logs[cursor.log], committed)
        places = [(other.log, other.next) for other in kept]
        if moved is not None and (moved.log, moved.next) not in places:
            kept.append(moved)
    return kept[:_MAX_CURSORS]


def _advanced(cursor: Cursor, log: Log | None, committed: Sequence[int]) -> Cursor | None:
    position, num_matched, misses = cursor.next, cursor.num_matched, cursor.misses
    for token in committed:
        if log is None or not log.begin <= position < log.end or log.at(position) == BORDER:
            return None
        if log.at(position) == token:
            num_matched += 1
            misses = 0 if num_matched > _MATCHED_TO_FORGET_MISSES else misses
        elif misses == _MAX_MISSES or num_matched == 0:
            return None
        else:
            num_matched, misses = 0, misses + 1
        position += 1
    return Cursor(cursor.log, position, num_matched, misses)


def _gather(
    logs: Sequence[Log | None], cursors: Sequence[Cursor], max_candidates: int
) -> list[Candidate]:
    assert logs[0] is not None
    context = logs[0].tokens
    gathered = []
    for cursor in cursors:
        log = logs[cursor.log]
        position = cursor.next
        if log is not None and log.begin <= position < log.end and log.at(position) != BORDER:
            length = match_length(log, position, context)
            gathered.append(Candidate(cursor.log, position, length, cursor.misses))
    followed = [(candidate.log, candidate.next) for candidate in gathered]
    for number, log in enumerate(logs):
        found = find_candidates(log, number, context, max_candidates) if log is not None else []
        gathered += [c for c in found if (c.log, c.next) not in followed]
    return gathered


def _weigh(
    candidates: Sequence[Candidate],
    logs: Sequence[Log | None],
    calibration: Calibration,
    made: Draft,
) -> None:
    rank = {Source.CONTEXT: 1.0, Source.SHARED: 1.0}
    for candidate in candidates:
        cell = (candidate.source, candidate.misses, length_bucket(candidate.match_length))
        trust = calibration.trust.probability(cell)
        odds = trust / (1.0 - trust + _ODDS_FLOOR)
        candidate.weight = odds * odds * rank[candidate.source]
        rank[candidate.source] *= _RANK_DISCOUNT
        made.votes.append((_guess(candidate, logs, made), cell))


def _guess(candidate: Candidate, logs: Sequence[Log | None], made: Draft) -> int:
    log = logs[candidate.log]
    assert log is not None
    if candidate.next < log.end:
        return log.at(candidate.next)
    # A copy that reaches the end of the context goes on in the draft itself.
    beyond = candidate.next - log.end
    return made.nodes[beyond].token if candidate.log == 0 else BORDER


def _extend(
    candidates: Sequence[Candidate],
    logs: Sequence[Log | None],
    calibration: Calibration,
    made: Draft,
) -> list[Candidate]:
    """Add the winner of one vote to the draft; returns its voters, one token further on."""
    ballots: dict[int, list[Candidate]] = {}
    for candidate in candidates:
        token = _guess(candidate, logs, made)
        if token != BORDER:
            ballots.setdefault(token, []).append(candidate)
    if not ballots:
        return []
    # Added one by one from the left, as natively: sum() rounds otherwise in newer Pythons.
    weights = {
        token: reduce(add, [voter.weight for voter in voters]) for token, voters in ballots.items()
    }
    winner = max(ballots, key=weights.__getitem__)
    voters = ballots[winner]
    best = max(voters, key=lambda voter: voter.weight)
    depth = len(made.nodes)
    cell = (
        best.source,
        best.misses,
        length_bucket(max(voter.match_length for voter in voters) + depth),
        agreement_bucket(
            len(ballots), len(voters), weights[winner] / reduce(add, weights.values())
        ),
        depth_bucket(depth),
    )
    if depth == 0:
        made.lead = Cursor(best.log, best.next, best.match_length, best.misses)
    made.nodes.append(Node(winner, calibration.acceptance.probability(cell), best.source, cell))
    for voter in voters:
        voter.next += 1
    return voters
