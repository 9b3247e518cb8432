"""What `ReferenceIndex` has learned of its drafts: the native core's `Calibration` again."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Final

import numpy as np

from paceline.caches._native import initial_calibration
from paceline.caches.tree import Source

_LENGTH_BOUNDS: Final = (0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 24, 32, 48, 64)
_GAP_BOUNDS: Final = (0, 1, 2, 4, 8, 16)
_DEPTH_BOUNDS: Final = (0, 1, 3, 8)
_RANKED: Final = (Source.CONTEXT, Source.WORKLOAD, Source.TENANT, Source.CORPUS)
_NUM_SOURCES: Final = len(_RANKED)
_NUM_RANKS: Final = 8
_NUM_FOLLOWED: Final = 8
_NUM_AGES: Final = 10
_NUM_DISTANCES: Final = 6
_NUM_CROWDS: Final = 4
_NUM_NODE_RANKS: Final = 4
_NUM_KNOTS: Final = 25
_KNOTS_PER_LOGIT: Final = 2.0
_MOST_TRIALS: Final = 2000.0
_MAX_SIMILAR: Final = 16
_YOUNG: Final = 16
_FAR_BACK: Final = -2048
_MAX_MISSES: Final = 3

_CROWD_BOUNDS: Final = (0, 2, 4, 8, 32, 256)

_NUM_LENGTHS: Final = len(_LENGTH_BOUNDS)
_RANK_WEIGHTS: Final = _NUM_SOURCES * 2 * _NUM_LENGTHS
_GAP_WEIGHTS: Final = _RANK_WEIGHTS + _NUM_SOURCES * _NUM_RANKS
_SIMILAR_WEIGHTS: Final = _GAP_WEIGHTS + _NUM_SOURCES * len(_GAP_BOUNDS) * _NUM_LENGTHS
_FOLLOWED_WEIGHTS: Final = _SIMILAR_WEIGHTS + _NUM_SOURCES * (_MAX_SIMILAR + 1) * _NUM_LENGTHS
_PLACE_WEIGHTS: Final = _FOLLOWED_WEIGHTS + _NUM_SOURCES * (_MAX_MISSES + 1) * _NUM_FOLLOWED
_ESCAPE_WEIGHTS: Final = _PLACE_WEIGHTS + _NUM_SOURCES * _NUM_DISTANCES * _NUM_AGES
_MAP: Final = _ESCAPE_WEIGHTS + _NUM_LENGTHS * _NUM_CROWDS
_HITS: Final = len(_DEPTH_BOUNDS) * _NUM_NODE_RANKS * 2 * 5 * 2 * 2 * _NUM_KNOTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What is known of an earlier place when it is ranked; see the native `PlaceTraits`."""

    source: Source
    was_said: bool
    match_length: int
    longest: int
    rank: int
    num_similar: int
    num_followed: int
    misses: int
    age: int
    distance: int | None
    count: int = 0
    total: int = 0

    def features(self) -> tuple[int, ...]:
        """Indices of the weights that belong to the place."""
        source, length = _RANKED.index(self.source), length_bucket(self.match_length)
        gap = bisect_right(_GAP_BOUNDS, self.longest - self.match_length) - 1
        followed = min(_NUM_FOLLOWED - 1, self.num_followed // 4 + (self.num_followed > 0))
        return (
            (source * 2 + self.was_said) * _NUM_LENGTHS + length,
            _RANK_WEIGHTS + source * _NUM_RANKS + min(self.rank, _NUM_RANKS - 1),
            _GAP_WEIGHTS + (source * len(_GAP_BOUNDS) + gap) * _NUM_LENGTHS + length,
            _SIMILAR_WEIGHTS
            + (source * (_MAX_SIMILAR + 1) + self.num_similar) * _NUM_LENGTHS
            + length,
            _FOLLOWED_WEIGHTS
            + (source * (_MAX_MISSES + 1) + self.misses) * _NUM_FOLLOWED
            + followed,
            _PLACE_WEIGHTS + source * _NUM_DISTANCES * _NUM_AGES + self._place_cell(),
        )

    def _place_cell(self) -> int:
        if self.source is Source.CORPUS:
            tenths = min(_NUM_AGES - 1, self.count * (_NUM_AGES - 1) // self.total)
            return (bisect_right(_CROWD_BOUNDS, self.total) - 1) * _NUM_AGES + tenths
        return _distance_bucket(self.distance) * _NUM_AGES + _age_bucket(self.age)


class Calibration:
    """Weights that rank places and the map from shares to probabilities: float32, as natively."""

    def __init__(self) -> None:
        self._table = initial_calibration().copy()

    def score(self, features: tuple[int, ...]) -> np.float32:
        """Sum of a place's weights."""
        total = np.float32(0)
        for feature in features:
            total += self._table[feature]
        return total

    def escape_score(self, longest: int, num_candidates: int) -> np.float32:
        """Score of "none of the candidates is right"."""
        return np.float32(self._table[_escape_index(longest, num_candidates)])

    def shift(self, features: tuple[int, ...], step: float) -> None:
        """Add `step` to every weight of a place."""
        for feature in features:
            self._table[feature] = np.float32(float(self._table[feature]) + step)

    def shift_escape(self, longest: int, num_candidates: int, step: float) -> None:
        """Add `step` to the weight of the escape."""
        self.shift((_escape_index(longest, num_candidates),), step)

    def probability(self, context: int, share: float) -> float:
        """P(right), interpolated between the two knots that the share lies between."""
        knot, part = _knot_of(context, share)
        return (1.0 - part) * self._frequency(knot) + part * self._frequency(knot + 1)

    def record(self, context: int, share: float, *, hit: bool) -> None:
        """Count one trial, divided between the two knots."""
        knot, part = _knot_of(context, share)
        for at, amount in ((knot, 1.0 - part), (knot + 1, part)):
            self._add(at, amount)
            if hit:
                self._add(at + _HITS, amount)
            if self._table[at] > _MOST_TRIALS:
                self._table[at] *= np.float32(0.5)
                self._table[at + _HITS] *= np.float32(0.5)

    def _frequency(self, knot: int) -> float:
        return float(self._table[knot + _HITS]) / float(self._table[knot])

    def _add(self, at: int, amount: float) -> None:
        self._table[at] = np.float32(float(self._table[at]) + amount)


def length_bucket(match_length: int) -> int:
    """Cells of match lengths: exact while short."""
    return bisect_right(_LENGTH_BOUNDS, match_length) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTraits:
    """What is known of a node when its share becomes a probability; see the native `NodeTraits`."""

    depth: int
    rank: int
    num_votes: int
    match_length: int
    is_own: bool
    was_said: bool

    def map_context(self) -> int:
        """Context of the probability map."""
        level = bisect_right(_DEPTH_BOUNDS, self.depth) - 1
        place = level * _NUM_NODE_RANKS + min(self.rank, _NUM_NODE_RANKS - 1)
        votes = place * 2 + (self.num_votes > 1)
        length = votes * 5 + length_bucket(self.match_length) // 3
        return (length * 2 + self.is_own) * 2 + self.was_said


def _escape_index(longest: int, num_candidates: int) -> int:
    crowd = min(_NUM_CROWDS - 1, num_candidates // 6)
    return _ESCAPE_WEIGHTS + length_bucket(longest) * _NUM_CROWDS + crowd


def _distance_bucket(distance: int | None) -> int:
    if distance is None:
        return 0
    if distance < 0:
        return 4 if distance > _FAR_BACK else 5
    return (1, 2, 3, 5)[bisect_right((8, 256, 4096), distance)]


def _age_bucket(age: int) -> int:
    bucket = 0
    while age > _YOUNG and bucket + 1 < _NUM_AGES:
        age //= 4
        bucket += 1
    return bucket


def _knot_of(context: int, share: float) -> tuple[int, float]:
    p = min(max(share, 1e-4), 1.0 - 1e-4)
    place = math.log(p / (1.0 - p)) * _KNOTS_PER_LOGIT + (_NUM_KNOTS - 1) / 2.0
    place = min(max(place, 0.0), _NUM_KNOTS - 1 - 1e-3)
    return _MAP + context * _NUM_KNOTS + int(place), place - int(place)
