"""Whether a new version of a drafter is worse than the one before, from the traffic it drafts for.

Each round of a request in which the model drafts is a trial: was its first token what the target
then said? How often it is depends on the work far more than on the drafter, so that versions are
compared within strata (a kind of work in a sharing scope, and how much memory knew there): a change
of the traffic's mix is no change of the drafter.

Within a stratum the old version's rounds say what its rate may be. "The new one is as good" says
that the new rounds come with that rate, "it is worse by s" that they come with one whose log odds
are s lower. How much likelier the new rounds are by the second than by the first, both averaged
over what the old rate may be, multiplied over strata and averaged over several s, is evidence that
may be looked at after every round: under the first it exceeds 1/a at any time with a chance of a at
most. This is the mixture sequential probability ratio test (Robbins 1970, "Statistical methods
related to the law of the iterated logarithm"; Johari, Pekelis, Walsh 2015, arXiv 1512.04922), by
Ville's inequality, with Wald's other border (1945) against the least s for when to stop and keep.

Strata that the old version hardly drafted for say nothing of a difference. They are put together as
one, whose old rate may have been nearly anything around the old mean, and tested apart for a
collapse alone. If there is nothing but such strata, the gate before the release was the comparison,
and the version is kept after `most_rounds`.

The trials of one request are not independent, so that the chance of a false alarm is not exactly
the one that is set.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from paceline.errors import ConfigError

Verdict = Literal["worse", "fine", "open"]
Reals = npt.NDArray[np.float64]

LOG_ODDS: Final = np.linspace(-8.0, 8.0, 801)
"""Of the rates that are thought possible."""
COLLAPSE: Final = 4.0
"""Shift of the log odds that is looked for where nothing can be compared: 0.5 becomes 0.02."""
COMPARED_SHARE: Final = 0.8
"""Of false alarms, those that the comparison may give."""
LEAST_MEAN: Final = 0.02
"""The old mean is taken to lie that far from 0 and 1."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a version did in some rounds of requests.

    Attributes:
        num_rounds: in which the model drafted; a fraction where old ones count for less.
        num_agreed: of those, in which its first token was what the target said.
        num_accepted: tokens of its own chains that were right.
    """

    num_rounds: float = 0.0
    num_agreed: float = 0.0
    num_accepted: float = 0.0

    def __add__(self, other: Seen) -> Seen:
        return Seen(
            self.num_rounds + other.num_rounds,
            self.num_agreed + other.num_agreed,
            self.num_accepted + other.num_accepted,
        )

    def times(self, factor: float) -> Seen:
        """The same with every round counting for `factor`."""
        return Seen(factor * self.num_rounds, factor * self.num_agreed, factor * self.num_accepted)

    @property
    def agreement(self) -> float:
        """Share of rounds in which the first token was right, 0 without any."""
        return self.num_agreed / self.num_rounds if self.num_rounds else 0.0

    @property
    def accepted_length(self) -> float:
        """Tokens of its own chain that were right, mean a round."""
        return self.num_accepted / self.num_rounds if self.num_rounds else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryRules:
    """When a version is judged.

    Attributes:
        false_alarms: chance at which one that is as good may be called worse, most of it
            where versions can be compared.
        false_passes: chance at which one that is worse by the least shift may be kept early.
        shifts: how much lower the log odds of a worse one are thought to be, rising.
        least_rounds: before so many none is kept.
        most_rounds: after so many it is kept if it has not been found worse.
        least_before: rounds of the old version that make a stratum comparable.
        least_strange: rounds in strata that cannot be compared before a collapse is looked for.
        most_before: rounds that the old version's rate in a stratum is trusted for at most:
            the work changes within a stratum, too.
        prior_rounds: rounds that the old mean counts for in each stratum.
    """

    false_alarms: float = 0.02
    false_passes: float = 0.05
    shifts: tuple[float, ...] = (0.5, 0.9, 1.6)
    least_rounds: int = 200
    most_rounds: int = 2000
    least_before: int = 20
    least_strange: int = 50
    most_before: int = 4000
    prior_rounds: float = 4.0

    def __post_init__(self) -> None:
        for name in ("false_alarms", "false_passes"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ConfigError(f"{name} is {getattr(self, name)}; give a chance within 0 and 1")
        if not self.shifts or min(self.shifts) <= 0.0:
            raise ConfigError(f"shifts are {self.shifts}; give at least one, all above 0")
        if not 0 < self.least_rounds <= self.most_rounds:
            raise ConfigError(
                f"least_rounds is {self.least_rounds}; give 1 to most_rounds ({self.most_rounds})"
            )


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is known of a new version.

    Attributes:
        verdict: "worse": roll it back. "fine": keep it. "open": look again after more rounds.
        log_evidence: natural logarithm of how much likelier its comparable rounds are if it is
            worse than if it is as good.
        seen: all of its rounds.
        expected: agreement of the old version on the same mix, where strata overlap; else its mean.
        num_comparable: of its rounds, in strata that the old version knew.
    """

    verdict: Verdict
    log_evidence: float
    seen: Seen
    expected: float
    num_comparable: float


def judge(
    before: Mapping[Hashable, Seen],
    since: Mapping[Hashable, Seen],
    *,
    rules: CanaryRules | None = None,
    elsewhere: Seen | None = None,
) -> Judgement:
    """Compare a version with the one before it. O(strata * rates).

    Args:
        before: rounds of the old version by stratum.
        since: those of the new one, all since it began.
        rules: when to decide.
        elsewhere: the old version's over all strata, where more is known than `before` (by other
            engines); it says what its mean was and nothing of a stratum.
    """
    rules = rules or CanaryRules()
    seen = sum(since.values(), Seen())
    old = sum(before.values(), Seen())
    mean = (old if old.num_rounds or elsewhere is None else elsewhere).agreement
    if not old.num_rounds and (elsewhere is None or not elsewhere.num_rounds):
        mean = 0.5
    mean = min(max(mean, LEAST_MEAN), 1.0 - LEAST_MEAN)
    known = {
        stratum: each
        for stratum, each in since.items()
        if before.get(stratum, Seen()).num_rounds >= rules.least_before
    }
    strange = sum((each for stratum, each in since.items() if stratum not in known), Seen())
    pairs = [(_trusted(before[stratum], rules), each) for stratum, each in known.items()]
    comparable = sum(known.values(), Seen()).num_rounds
    by_shift = _log_ratios(pairs, mean, rules.shifts, rules.prior_rounds)
    collapsed = _log_ratios([(Seen(), strange)], mean, (COLLAPSE,), rules.prior_rounds)
    mixed = np.logaddexp.reduce(by_shift) - log(len(rules.shifts))
    has_collapsed = strange.num_rounds >= rules.least_strange and collapsed[0] >= log(
        1.0 / (rules.false_alarms * (1.0 - COMPARED_SHARE))
    )
    expected = mean
    if comparable:
        same_mix = sum(each.num_rounds * old_one.agreement for old_one, each in pairs)
        expected = same_mix / comparable
    verdict: Verdict = "open"
    if has_collapsed or mixed >= log(1.0 / (rules.false_alarms * COMPARED_SHARE)):
        verdict = "worse"
    elif seen.num_rounds >= rules.least_rounds and (
        seen.num_rounds >= rules.most_rounds or by_shift[0] <= log(rules.false_passes)
    ):
        verdict = "fine"
    return Judgement(verdict, float(mixed), seen, expected, comparable)


def _trusted(old: Seen, rules: CanaryRules) -> Seen:
    return old.times(min(1.0, rules.most_before / old.num_rounds))


def _log_ratios(
    pairs: Sequence[tuple[Seen, Seen]], mean: float, shifts: Sequence[float], prior_rounds: float
) -> Reals:
    """By each shift, how much likelier the new rounds are than without one, logarithm."""
    total = np.zeros(len(shifts))
    right, wrong = _log_rates(0.0)
    for old, new in pairs:
        agreed = prior_rounds * mean + old.num_agreed
        failed = prior_rounds * (1.0 - mean) + old.num_rounds - old.num_agreed
        # density over log odds: that of Beta(agreed, failed)
        belief = agreed * right + failed * wrong
        num_wrong = new.num_rounds - new.num_agreed
        as_good = np.logaddexp.reduce(belief + new.num_agreed * right + num_wrong * wrong)
        for i, shift in enumerate(shifts):
            low_right, low_wrong = _log_rates(shift)
            worse = belief + new.num_agreed * low_right + num_wrong * low_wrong
            total[i] += np.logaddexp.reduce(worse) - as_good
    return total


def _log_rates(shift: float) -> tuple[Reals, Reals]:
    """Logarithms of the rates at `LOG_ODDS`, lowered by a shift, and of one less them."""
    odds = LOG_ODDS - shift
    return -np.logaddexp(0.0, -odds), -np.logaddexp(0.0, odds)
