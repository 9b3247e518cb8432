"""How `ReferenceIndex` drafts: the native core's rules again, by linear scans over lists."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import Final

import numpy as np

from paceline.caches.reference.calibration import Calibration, NodeTraits, Traits
from paceline.caches.reference.lookup import (
    BORDER,
    MAX_MATCH,
    Candidate,
    Log,
    Reading,
    find_candidates,
    find_in_corpora,
    match_length,
    num_similar,
)
from paceline.caches.reference.segment import Place
from paceline.caches.tree import Source

_MAX_MISSES: Final = 3
_MATCHED_TO_FORGET_MISSES: Final = 16
_MAX_CURSORS: Final = 4
_FOLLOWED_LONG: Final = 16
_CANDIDATES_BESIDE: Final = 4
_LEARNING_RATE: Final = 0.05
_CONSIDERED: Final = 0.3
_MOST_PLACES: Final = 16
_LEAST_SHARE: Final = float(np.float32(0.01))


@dataclass(slots=True)
class Cursor:
    """A place that drafting follows from round to round."""

    log: int
    next: int
    num_matched: int
    misses: int


@dataclass(slots=True)
class Trail:
    """What a request carries from round to round: cursors, and the places last copied rightly."""

    cursors: list[Cursor] = field(default_factory=list)
    anchors: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Node:
    """One considered token, its children, and the voters behind it, one token further on."""

    token: int
    parent: Node | None
    probability: float
    source: Source
    context: int
    share: float
    path_probability: float
    voters: list[Candidate]
    children: list[Node] = field(default_factory=list)
    issued: int = -1

    @property
    def path(self) -> list[int]:
        """Tokens from the root's child to this node."""
        return [*(self.parent.path if self.parent else []), self.token]


@dataclass(slots=True)
class Draft:
    """The last draft of a request and what it takes to learn from it."""

    roots: list[Node] = field(default_factory=list)
    issued: list[Node] = field(default_factory=list)
    places: list[Candidate] = field(default_factory=list)
    escape_share: float = 0.0
    longest: int = 0
    considered: list[Node] | None = None
    """Children of the node that the committed tokens have led to; None once they left the draft."""


def evidence_of(place: Place | None) -> np.float32:
    """What a place of a corpus adds to its score; 0 for one of a log."""
    if place is None:
        return np.float32(0)
    places = float(place.count) * min(place.total, _MOST_PLACES)
    return np.float32(math.log(places / (float(place.total) * place.num_alike)))


def draft(
    reading: Reading,
    trail: Trail,
    calibration: Calibration,
    *,
    max_tokens: int,
    max_branches: int,
    max_candidates: int,
    min_probability: float,
) -> Draft:
    """A tree of at most `max_tokens` nodes."""
    made = Draft()
    if max_tokens == 0:
        return made
    made.places = _gather(reading, trail, max_candidates)
    if not made.places:
        return made
    _rank(made, reading, trail, calibration)
    voters = [replace(place) for place in made.places if place.share >= _LEAST_SHARE]
    frontier = made.roots = _children(
        reading, None, voters, made.escape_share, calibration, max_branches, min_probability
    )
    made.considered = made.roots
    while frontier and len(made.issued) < max_tokens:
        # The likeliest path; of equal ones, the one that was considered first.
        node = max(frontier, key=lambda n: n.path_probability)
        if node.path_probability < min_probability:
            break
        frontier = [other for other in frontier if other is not node]
        node.issued = len(made.issued)
        made.issued.append(node)
        if len(made.issued) < max_tokens:
            _advance_voters(node, reading)
            node.children = _children(
                reading, node, node.voters, 0.0, calibration, max_branches, min_probability
            )
            frontier = frontier + node.children
    return made


def score(
    scored: Draft, committed: Sequence[int], calibration: Calibration, trail: Trail
) -> list[Source]:
    """Learn from what was committed after a draft; returns the sources of the right nodes."""
    if scored.places:
        _learn_ranking(scored, committed[0], calibration)
        _lead_with(scored, committed[0], trail)
        scored.places = []
    accepted: list[Source] = []
    for token in committed:
        if scored.considered is None:
            break
        right = None
        for node in scored.considered:
            calibration.record(node.context, node.share, hit=node.token == token)
            right = node if node.token == token else right
        scored.considered = right.children if right else None
        if right is not None and right.issued >= 0:
            accepted.append(right.source)
    return accepted


def foresee(
    scored: Draft, trail: Trail, logs: Sequence[Log | None], supposed: Sequence[int]
) -> Trail:
    """The trail as it would be if these tokens were committed; call after the context grew."""
    foreseen = Trail([replace(cursor) for cursor in trail.cursors], dict(trail.anchors))
    if supposed:
        if scored.places:
            _lead_with(scored, supposed[0], foreseen)
        follow(foreseen, logs, supposed)
    return foreseen


def follow(trail: Trail, logs: Sequence[Log | None], committed: Sequence[int]) -> None:
    """Move the cursors past committed tokens."""
    kept: list[Cursor] = []
    for cursor in trail.cursors:
        if len(kept) == _MAX_CURSORS:
            break
        moved = _advanced(cursor, logs[cursor.log], committed, None if kept else trail)
        places = [(other.log, other.next) for other in kept]
        if moved is not None and (moved.log, moved.next) not in places:
            kept.append(moved)
    trail.cursors = kept


def _advanced(
    cursor: Cursor, log: Log | None, committed: Sequence[int], leading: Trail | None
) -> Cursor | None:
    position, num_matched, misses = cursor.next, cursor.num_matched, cursor.misses
    for token in committed:
        if log is None or not log.begin <= position < log.end or log.at(position) == BORDER:
            return None
        if log.at(position) == token:
            num_matched += 1
            misses = 0 if num_matched > _MATCHED_TO_FORGET_MISSES else misses
            if leading is not None:
                leading.anchors[cursor.log] = position + 1
        elif misses == _MAX_MISSES or num_matched == 0:
            return None
        else:
            num_matched, misses = 0, misses + 1
        position += 1
    return Cursor(cursor.log, position, num_matched, misses)


def _gather(reading: Reading, trail: Trail, max_candidates: int) -> list[Candidate]:
    logs = reading.logs
    assert logs[0] is not None
    context = logs[0].tokens
    if trail.cursors and trail.cursors[0].num_matched >= _FOLLOWED_LONG:
        max_candidates = min(max_candidates, _CANDIDATES_BESIDE)
    gathered = []
    for cursor in trail.cursors:
        log = logs[cursor.log]
        at = cursor.next
        if log is not None and log.begin <= at < log.end and log.at(at) != BORDER:
            length = match_length(log, at, context)
            similar = num_similar(log, at, context, length)
            gathered.append(
                Candidate(
                    cursor.log,
                    at,
                    length,
                    similar,
                    misses=cursor.misses,
                    num_followed=cursor.num_matched,
                )
            )
    followed = [(candidate.log, candidate.next) for candidate in gathered]
    for number, log in enumerate(logs):
        found = find_candidates(log, number, context, max_candidates) if log is not None else []
        gathered += [c for c in found if (c.log, c.next) not in followed]
    return gathered + find_in_corpora(reading, context, max_candidates)


def _rank(made: Draft, reading: Reading, trail: Trail, calibration: Calibration) -> None:
    """Softmax of the places' scores and of the event that none is right."""
    made.longest = max(place.match_length for place in made.places)
    scores = []
    for place in made.places:
        place.features = _traits(place, made.longest, reading, trail).features()
        scores.append(calibration.score(place.features) + evidence_of(place.place))
    escape = calibration.escape_score(made.longest, len(made.places))
    highest = max([escape, *scores])
    weights = [math.exp(float(value - highest)) for value in scores]
    made.escape_share = math.exp(float(escape - highest))
    # Added one by one from the left, as natively: sum() rounds otherwise in newer Pythons.
    total = reduce(add, weights, made.escape_share)
    made.escape_share /= total
    for place, weight in zip(made.places, weights, strict=True):
        place.share = float(np.float32(weight / total))


def _traits(place: Candidate, longest: int, reading: Reading, trail: Trail) -> Traits:
    """What is known of a candidate, whose guess is set."""
    seen = place.place
    if seen is not None:
        place.guess = reading.at(place.log, place.next)
        return Traits(
            source=Source.CORPUS,
            was_said=False,
            match_length=place.match_length,
            longest=longest,
            rank=0,
            num_similar=place.num_similar,
            num_followed=0,
            misses=0,
            age=0,
            distance=None,
            count=seen.count,
            total=seen.total,
        )
    log = reading.logs[place.log]
    assert log is not None
    place.guess = log.at(place.next)
    anchor = trail.anchors.get(place.log)
    return Traits(
        source=reading.source(place.log),
        was_said=log.was_said(place.next),
        match_length=place.match_length,
        longest=longest,
        rank=place.rank,
        num_similar=place.num_similar,
        num_followed=place.num_followed,
        misses=place.misses,
        age=log.end - place.next,
        distance=None if anchor is None else place.next - anchor,
    )


def _was_said(reading: Reading, place: Candidate) -> bool:
    """Whether the model said a place's token; what is copied from the draft itself it would say."""
    if reading.source(place.log) is Source.CORPUS:
        return False
    log = reading.logs[place.log]
    assert log is not None
    return place.next >= log.end or log.was_said(place.next)


def _children(
    reading: Reading,
    parent: Node | None,
    voters: Sequence[Candidate],
    unlikely: float,
    calibration: Calibration,
    max_branches: int,
    min_probability: float,
) -> list[Node]:
    """The likeliest continuations of a node (None: of the context), likeliest first."""
    groups: dict[int, list[Candidate]] = {}
    for voter in voters:
        if voter.guess != BORDER:
            groups.setdefault(voter.guess, []).append(voter)
    weights = {
        token: reduce(add, [voter.share for voter in group], 0.0) for token, group in groups.items()
    }
    total = reduce(add, weights.values(), unlikely)
    depth = len(parent.path) if parent else 0
    reached = parent.path_probability if parent else 1.0
    children = []
    ballot = sorted(groups, key=lambda token: -weights[token])[:max_branches]
    for rank, token in enumerate(ballot):
        group = groups[token]
        share = weights[token] / total
        best = max(group, key=lambda voter: voter.share)
        context = NodeTraits(
            depth=depth,
            rank=rank,
            num_votes=len(group),
            match_length=min(max(voter.match_length for voter in group) + depth, MAX_MATCH),
            is_own=best.log == 0,
            was_said=_was_said(reading, best),
        ).map_context()
        probability = calibration.probability(context, share)
        if reached * probability >= min_probability * _CONSIDERED:
            children.append(
                Node(
                    token,
                    parent,
                    probability,
                    reading.source(best.log),
                    context,
                    share,
                    reached * probability,
                    group,
                )
            )
    return children


def _advance_voters(node: Node, reading: Reading) -> None:
    for voter in node.voters:
        voter.next += 1
        if voter.place is not None:
            voter.guess = reading.at(voter.log, voter.next)
            continue
        log = reading.logs[voter.log]
        assert log is not None
        if voter.next < log.end:
            voter.guess = log.at(voter.next)
        else:
            # A copy that reaches the end of the context goes on in the draft itself.
            beyond = voter.next - log.end
            path = node.path
            goes_on = voter.log == 0 and beyond < len(path)
            voter.guess = path[beyond] if goes_on else BORDER


def _learn_ranking(scored: Draft, committed: int, calibration: Calibration) -> None:
    right = reduce(add, [p.share for p in scored.places if p.guess == committed], 0.0)
    for place in scored.places:
        wanted = place.share / right if right > 0 and place.guess == committed else 0.0
        calibration.shift(place.features, _LEARNING_RATE * (wanted - place.share))
    wanted = 0.0 if right > 0 else 1.0
    step = _LEARNING_RATE * (wanted - scored.escape_share)
    calibration.shift_escape(scored.longest, len(scored.places), step)


def _lead_with(scored: Draft, committed: int, trail: Trail) -> None:
    """Put the likeliest place that was right first among the cursors, then the likeliest of all.

    Places of corpora are not followed.
    """
    in_logs = [place for place in scored.places if place.place is None]
    best = max(in_logs, key=lambda place: place.share, default=None)
    rights = [place for place in in_logs if place.guess == committed]
    right = max(rights, key=lambda place: place.share) if rights else None
    for lead in (best if best is not right else None, right):
        if lead is None:
            continue
        others = [c for c in trail.cursors if (c.log, c.next) != (lead.log, lead.next)]
        num_matched = max(lead.match_length, lead.num_followed)
        trail.cursors = [Cursor(lead.log, lead.next, num_matched, lead.misses), *others]
