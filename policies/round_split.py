"""How much of a round's time its drafts took, and how much it would have taken without them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import msgspec

from paceline.policies.bandits import batch_bucket

DISCOUNT: Final = 0.98
"""What a round still counts for after the next one of its kind."""
PACE_SHARE: Final = 0.1
"""What a round counts for in how fast rounds are at the moment."""
MOST_ERROR: Final = 0.5
"""Logarithm by which one round may differ from others of its kind; more is taken for as much."""
LEAST_ROUNDS: Final = 3
"""Rounds without drafts, at a load, before anything is said of it."""
EAGER_INTERVAL: Final = 2
"""Rounds with drafts after which one without is wanted, until as many are known."""
FIRST_INTERVAL: Final = 16
"""The same from then on, and the other way round; doubled from one to the next."""
LAST_INTERVAL: Final = 1024
MOVED: Final = 0.1
"""Logarithm: what still moves by as much is looked at more often again."""
REFRESH: Final = 8
"""Rounds after which what was learned is looked at again."""
UNDRAFTED: Final = 0


class RoundTime(msgspec.Struct, frozen=True):
    """What a round took.

    Attributes:
        num_requests: in it.
        num_tokens: that the target read of all of them, drafted ones included.
        seconds: from its beginning to its end, without a model's drafting.
    """

    num_requests: int
    num_tokens: int
    seconds: float


class SplitTime(msgspec.Struct, frozen=True):
    """The two parts of a round's seconds; together they are what was measured.

    Attributes:
        base_seconds: what it would have taken without drafts.
        draft_seconds: what verifying them took.
    """

    base_seconds: float
    draft_seconds: float


@dataclass(slots=True)
class _Kind:
    """Rounds of one load with about as many drafted tokens.

    Attributes:
        log_seconds: mean logarithm of what they take, at a pace of 0.
        drafted_each: mean of drafted tokens a request.
        weight: rounds, discounted.
        num_seen: rounds.
    """

    log_seconds: float
    drafted_each: float
    weight: float = 1.0
    num_seen: int = 1

    def learn(self, error: float, drafted_each: float) -> float:
        """Takes in a round; returns by how much `log_seconds` moved."""
        self.num_seen += 1
        self.weight = DISCOUNT * self.weight + 1.0
        step = error / self.weight
        self.log_seconds += step
        self.drafted_each += (drafted_each - self.drafted_each) / self.weight
        return step


@dataclass(slots=True)
class _Probing:
    """When a round is to be of a kind that has not come for long."""

    interval: int
    num_others: int = 0

    def is_due(self) -> bool:
        """Whether one is; if nothing comes of it, it is long before another one is."""
        if self.num_others < self.interval:
            return False
        self.num_others = self.interval // 2
        return True

    def note(self, moved: float, *, is_known: bool) -> None:
        """A round of the kind has moved what is known by so much."""
        if self.num_others and is_known:  # of several in a row one is enough
            interval = self.interval // 2 if abs(moved) > MOVED else 2 * self.interval
            self.interval = min(max(interval, FIRST_INTERVAL), LAST_INTERVAL)
        self.num_others = 0


@dataclass(slots=True)
class _Load:
    """Rounds of about as many requests.

    `pace` is the logarithm of how much longer rounds take at the moment than the means of their
    kinds: contexts grow, machines get slower.
    """

    pace: float = 0.0
    kinds: dict[int, _Kind] = field(default_factory=dict)
    points: list[tuple[float, float]] = field(default_factory=list)
    """Drafted tokens a request, and what they add, as `kinds` have them; rising."""
    num_learned: int = 0
    without: _Probing = field(default_factory=lambda: _Probing(EAGER_INTERVAL))
    with_drafts: _Probing = field(default_factory=lambda: _Probing(FIRST_INTERVAL))

    @property
    def undrafted(self) -> _Kind | None:
        """Rounds without drafts; None while too few are known."""
        kind = self.kinds.get(UNDRAFTED)
        return kind if kind is not None and kind.num_seen >= LEAST_ROUNDS else None

    def learn(self, log_seconds: float, drafted_each: float) -> None:
        """Takes in a round."""
        size = _size(drafted_each)
        kind, moved = self.kinds.get(size), 0.0
        if kind is None:
            self.kinds[size] = _Kind(log_seconds - self.pace, drafted_each)
        else:
            error = log_seconds - self.pace - kind.log_seconds
            error = min(max(error, -MOST_ERROR), MOST_ERROR)
            self.pace += PACE_SHARE * error
            moved = kind.learn(error, drafted_each)
        self.num_learned += 1
        if kind is None or self.num_learned % REFRESH == 0 or size == UNDRAFTED:
            self.points = self._as_points()
        came, other = self.without, self.with_drafts
        if size != UNDRAFTED:
            came, other = other, came
        came.note(moved, is_known=self.undrafted is not None)
        other.num_others += 1

    def added(self, drafted_each: float) -> float:
        """What so many drafted tokens a request add to a round, in parts of one without.

        Between rounds with more and with fewer; beyond all that were seen as the last two of them
        go on, or as one that is alone.
        """
        points = self.points
        if not points or drafted_each <= 0.0:
            return 0.0
        after = 0
        while after < len(points) - 1 and points[after][0] < drafted_each:
            after += 1
        high, at_high = points[after]
        if not after:
            return at_high * drafted_each / high
        low, at_low = points[after - 1]
        slope = (at_high - at_low) / (high - low)
        return max(0.0, at_low + slope * (drafted_each - low))

    def _as_points(self) -> list[tuple[float, float]]:
        base = self.undrafted
        if base is None:
            return []
        return sorted(
            (kind.drafted_each, max(0.0, math.exp(kind.log_seconds - base.log_seconds) - 1.0))
            for size, kind in self.kinds.items()
            if size != UNDRAFTED
        )


class RoundSplit:
    """Splits rounds by what others took: those without drafts, at the same load.

    No form is taken for granted: a load's first drafted token may cost more than all others. How
    fast rounds are at the moment is apart from what kinds of them take beside each other, so that a
    machine that gets slower for all makes no draft look dear. All of it is time; nothing is known
    here of who drafted what for whom. O(1) a round.
    """

    def __init__(self) -> None:
        self._loads: dict[int, _Load] = {}

    def wanted(self, num_requests: int) -> bool | None:
        """Whether the round of so many requests that begins is to go with drafts. O(1).

        None where it may go as it would: all but one of 16 at first, and all but one of 1,024 once
        nothing new comes of rounds of the other kind. Those that come by themselves count as well.
        """
        load = self._loads.get(batch_bucket(num_requests))
        if load is None:
            return None
        if load.without.is_due():
            return False
        return True if load.with_drafts.is_due() else None

    def learn(self, time: RoundTime) -> SplitTime | None:
        """Take a round in; its parts, None while too little is known of its load. O(1)."""
        requests, seconds = time.num_requests, time.seconds
        if requests <= 0 or not 0.0 < seconds < math.inf:
            return None
        drafted_each = (time.num_tokens - requests) / requests
        bucket = batch_bucket(requests)
        load = self._loads.get(bucket)
        if load is None:
            load = self._loads[bucket] = _Load()
        load.learn(math.log(seconds), drafted_each)
        if load.undrafted is None:
            return None
        base = seconds / (1.0 + load.added(drafted_each))
        return SplitTime(base, seconds - base)

    def added(self, num_requests: int, drafted_each: float) -> float:
        """What verifying so many tokens for each request would add to a round without drafts.

        In parts of that round; 0 where nothing is known. O(1).
        """
        load = self._loads.get(batch_bucket(num_requests))
        return 0.0 if load is None else load.added(drafted_each)


def _size(drafted_each: float) -> int:
    """Of drafted tokens a request, in powers of two; 0 for none."""
    return UNDRAFTED if drafted_each <= 0.0 else 1 + max(0, math.frexp(drafted_each)[1])
