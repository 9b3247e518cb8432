"""How much of a round's time its drafts took, and how much it would have taken without them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from paceline.policies.bandits import batch_bucket
from paceline.policies.round_cost import RoundCost

SLOW_DISCOUNT: Final = 0.998
"""Of the plane below: slopes that hold for long; how fast the machine is at the moment is apart."""
CORRECTION_DISCOUNT: Final = 0.98
PRIOR_ROUNDS: Final = 1.0
"""Rounds that the plane counts as where its corrections begin."""
PACE_SHARE: Final = 0.1
"""What a round counts for in how fast the machine is at the moment."""
MOST_ERROR: Final = 0.5
"""Logarithm by which one round may differ; more is taken for as much."""
MOST_FIRST_ERROR: Final = 2.0
"""The same for the first round of its kind: the plane may be far off where it has not been."""
FIRST_INTERVAL: Final = 16
"""Rounds with drafts after which one without is wanted, or the other way round; then doubled."""
LAST_INTERVAL: Final = 1024
MOVED: Final = 0.1
"""A correction that still moves by as much is looked at more often again."""


@dataclass(frozen=True, slots=True)
class RoundTime:
    """What a round took.

    Attributes:
        num_requests: in it.
        num_tokens: that the target read of all of them, drafted ones included.
        num_context: tokens that stood before these.
        seconds: from its beginning to its end, without a model's drafting.
    """

    num_requests: int
    num_tokens: int
    num_context: int
    seconds: float


@dataclass(frozen=True, slots=True)
class SplitTime:
    """The two parts of a round's seconds; together they are what was measured.

    Attributes:
        base_seconds: what it would have taken without drafts.
        draft_seconds: what verifying them took.
    """

    base_seconds: float
    draft_seconds: float


class _Correction:
    """Logarithm of what rounds take over what the plane says, at the pace of the moment."""

    __slots__ = ("is_new", "log", "weight")

    def __init__(self) -> None:
        self.is_new = True
        self.log = 0.0
        self.weight = PRIOR_ROUNDS

    def learn(self, error: float) -> float:
        """Takes an error beyond `log`; returns by how much it moved."""
        most = MOST_FIRST_ERROR if self.is_new else MOST_ERROR
        error, self.is_new = min(max(error, -most), most), False
        self.weight = CORRECTION_DISCOUNT * self.weight + 1.0
        step = error / self.weight
        self.log += step
        return step


@dataclass(slots=True)
class _Probing:
    """When a round of one load is to be of the kind that it has not been for long."""

    interval: int = FIRST_INTERVAL
    num_others: int = 0

    def is_due(self) -> bool:
        """Whether one is; if nothing comes of it, it is long before another one is."""
        if self.num_others < self.interval:
            return False
        self.num_others = self.interval // 2
        return True

    def note(self, moved: float) -> None:
        """A round of the kind has moved what is known by so much."""
        if self.num_others:  # of several in a row one is enough
            is_moving = abs(moved) > MOVED
            interval = self.interval // 2 if is_moving else 2 * self.interval
            self.interval = min(max(interval, FIRST_INTERVAL), LAST_INTERVAL)
        self.num_others = 0


class RoundSplit:
    """Splits rounds by what others took: those without drafts, at the same load, at the same time.

    A plane (`RoundCost`) says how rounds grow with requests, tokens and context. What it cannot
    say, as that the first drafted token of a batch costs more than all others, is learned beside
    it, by load and by drafted tokens a request, against the rounds just before: so that a machine
    that gets slower for all makes no draft look dear. All of it is time; nothing is known here of
    who drafted what for whom. O(1) a round.
    """

    def __init__(self) -> None:
        self._cost = RoundCost(discount=SLOW_DISCOUNT)
        self._pace = 0.0
        self._corrections: dict[tuple[int, int], _Correction] = {}
        self._probing: dict[int, tuple[_Probing, _Probing]] = {}
        """By load: rounds without drafts, and rounds with them."""

    def wanted(self, num_requests: int) -> bool | None:
        """Whether the round of so many requests that begins is to go with drafts. O(1).

        None where it may go as it would: all but one of 16 at first, and all but one of 1,024 once
        nothing new comes of rounds of the other kind. Those that come by themselves count as well.
        """
        probing = self._probing.get(batch_bucket(num_requests))
        if probing is None:
            return None
        without, with_drafts = probing
        if without.is_due():
            return False
        return True if with_drafts.is_due() else None

    def learn(self, time: RoundTime) -> SplitTime | None:
        """Take a round in; its parts, None while too little is known. O(1)."""
        requests, tokens, context = time.num_requests, time.num_tokens, time.num_context
        if requests <= 0 or not 0.0 < time.seconds < math.inf:
            return None
        cost, load = self._cost, batch_bucket(requests)
        is_drafted = tokens > requests
        if cost.is_known:
            log_with = math.log(cost.seconds(requests, tokens, context))
            own = self._correction(load, (tokens - requests) / requests)
            off = math.log(time.seconds) - log_with - self._pace - own.log
            self._pace += PACE_SHARE * min(max(off, -MOST_ERROR), MOST_ERROR)
            self._note(load, own.learn(off), is_drafted=is_drafted)
        cost.learn(requests, tokens, time.seconds, num_context=context)
        if not cost.is_known:
            return None
        if not is_drafted:
            return SplitTime(time.seconds, 0.0)
        log_share = math.log(
            cost.seconds(requests, requests, context) / cost.seconds(requests, tokens, context)
        )
        log_share += self._correction(load, 0.0).log
        log_share -= self._correction(load, (tokens - requests) / requests).log
        base = time.seconds * min(1.0, math.exp(log_share))
        return SplitTime(base, time.seconds - base)

    def drafted_share(self, time: RoundTime, drafted_each: float) -> float:
        """What verifying so many tokens for each request would add to such a round without drafts.

        In parts of that round; what was learned last goes for loads that have not been seen with
        so many. O(1).
        """
        requests, context, cost = time.num_requests, time.num_context, self._cost
        if not cost.is_known or drafted_each <= 0.0:
            return 0.0
        load = batch_bucket(requests)
        tokens = requests * (1.0 + drafted_each)
        log_share = math.log(
            cost.seconds(requests, tokens, context) / cost.seconds(requests, requests, context)
        )
        log_share += self._correction(load, drafted_each).log - self._correction(load, 0.0).log
        return max(0.0, math.exp(log_share) - 1.0)

    def _correction(self, load: int, drafted_each: float) -> _Correction:
        """By load and by drafted tokens a request, in powers of two."""
        size = 0 if drafted_each <= 0.0 else 1 + max(0, math.frexp(drafted_each)[1])
        return self._corrections.setdefault((load, size), _Correction())

    def _note(self, load: int, moved: float, *, is_drafted: bool) -> None:
        without, with_drafts = self._probing.setdefault(load, (_Probing(), _Probing()))
        came, other = (with_drafts, without) if is_drafted else (without, with_drafts)
        came.note(moved)
        other.num_others += 1
