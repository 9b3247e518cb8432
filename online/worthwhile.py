"""When an update of the drafter is worth its cost.

Idle cycles are cheap, not free: the rule of SpecBlock (gain against cost) for training instead of
drafting. All in seconds of serving.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PRIOR_CYCLES: Final = 2.0
"""Cycles that the first guess of a gain counts as."""
CHANGED: Final = 0.2
"""Share of what was accepted of the drafter that is lost where the traffic has changed."""
DISCOUNT: Final = 0.8
"""What a cycle still counts for after the next one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Economics:
    """What time is worth.

    Attributes:
        horizon_seconds: how long an update is taken to be of use.
        idle_price: seconds of serving that a second of an idle machine is worth.
        prior_gain: accepted tokens a round that a cycle is taken to bring before any has been seen.
    """

    horizon_seconds: float = 3600.0
    idle_price: float = 0.01
    prior_gain: float = 0.1


class ExpectedGain:
    """Accepted tokens a round that the next cycle would bring: a discounted mean of what was seen.

    Args:
        prior: before any cycle.
    """

    def __init__(self, prior: float) -> None:
        self._weight = PRIOR_CYCLES
        self._total = PRIOR_CYCLES * prior

    @property
    def value(self) -> float:
        """Expected, at least zero."""
        return max(0.0, self._total / self._weight)

    def learn(self, gained: float) -> None:
        """A cycle has brought that, on held-out sessions; below zero where it made it worse."""
        self._weight = DISCOUNT * self._weight + 1.0
        self._total = DISCOUNT * self._total + gained


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether to begin a cycle.

    Attributes:
        begins: whether.
        reason: in words.
        gain_seconds: of serving that it is expected to save.
        cost_seconds: that it is expected to cost.
        has_changed: whether the traffic has, so that what earlier cycles came to says little.
    """

    begins: bool
    reason: str
    gain_seconds: float = 0.0
    cost_seconds: float = 0.0
    has_changed: bool = False


def decide(
    economics: Economics,
    *,
    accepted_length: float,
    expected_gain: float,
    drift: float,
    busy_share: float,
    cycle_seconds: float,
) -> Decision:
    """Whether a cycle is expected to save more than it costs.

    A round yields one token more than are accepted, so that ``gain`` more accepted tokens save
    ``gain / (1 + accepted_length + gain)`` of the rounds.

    Args:
        economics: what time is worth.
        accepted_length: tokens a round that are accepted of the drafter now, on recent traffic.
        expected_gain: that a cycle brings where nothing has changed.
        drift: accepted tokens a round that were lost since the drafter was last judged.
        busy_share: of the time that the engines are serving, 0 to 1.
        cycle_seconds: of idle time that a cycle takes.
    """
    gain = max(expected_gain, drift)
    saved = gain / (1.0 + max(0.0, accepted_length) + gain) if gain > 0 else 0.0
    gain_seconds = busy_share * economics.horizon_seconds * saved
    cost_seconds = economics.idle_price * cycle_seconds
    begins = gain_seconds > cost_seconds
    why = "the traffic has changed" if drift >= expected_gain else "earlier cycles brought as much"
    reason = (
        f"{gain:.3f} more accepted tokens a round ({why}) would save {gain_seconds:.1f} s, "
        f"{'more' if begins else 'not more'} than the {cost_seconds:.1f} s that a cycle costs"
    )
    return Decision(
        begins=begins,
        reason=reason,
        gain_seconds=gain_seconds,
        cost_seconds=cost_seconds,
        has_changed=drift > 0 and drift >= CHANGED * (accepted_length + drift),
    )
