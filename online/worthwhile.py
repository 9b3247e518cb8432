"""When an update of the drafter is worth its cost.

Idle cycles are cheap, not free: the rule of SpecBlock (gain against cost) for training instead of
drafting. All in seconds of serving.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

PRIOR_CYCLES: Final = 2.0
"""Cycles that the first guess of a gain counts as."""
CHANGED: Final = 0.2
"""Share of what was accepted of the drafter that is lost where the traffic has changed."""
LEAST_LOST: Final = 0.05
"""Accepted tokens a round that are lost there at least: of next to nothing a fifth is noise."""
KEPT_LOOKS: Final = 5
"""Looks that the mean of what is accepted of late is taken over, about."""
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
class Loss:
    """What a look at recent traffic found.

    Attributes:
        tokens: fewer accepted ones a round than before, at least zero.
        has_changed: whether the traffic has since the look before; told once for each change.
    """

    tokens: float = 0.0
    has_changed: bool = False


class RecentLooks(msgspec.Struct):
    """How the drafter that runs does on what was said of late, one look after the other.

    Looks are compared with looks, not with what the gate found: that is of other texts, some of
    them of workloads that come no more. So the first look at a version only says what is usual.

    Attributes:
        version: that was looked at.
        mean: accepted tokens a round, of its looks since the last change.
        num_looks: since then.
        before: what was accepted before the first change that this version has not made up for;
            None without one.
    """

    version: int = 0
    mean: float = 0.0
    num_looks: int = 0
    before: float | None = None

    def look(self, version: int, accepted_length: float) -> Loss:
        """Take in a look; returns what was lost. O(1).

        Once a change is told, what comes then is usual. What was lost stays so until as much is
        accepted again, or another version runs.

        Args:
            version: that runs.
            accepted_length: tokens a round that are accepted of it, on the newest passages.
        """
        if version != self.version:
            self.version, self.num_looks, self.before = version, 0, None
        usual = self.mean if self.num_looks else accepted_length
        has_changed = usual - accepted_length >= max(CHANGED * usual, LEAST_LOST)
        if has_changed:
            self.before = max(usual, self.before or 0.0)
            self.num_looks, self.mean = 1, accepted_length
        else:
            self.num_looks += 1
            self.mean = usual + (accepted_length - usual) / min(self.num_looks, KEPT_LOOKS)
        if self.before is not None and accepted_length >= self.before:
            self.before = None
        lost = max(usual, self.before or 0.0) - accepted_length
        return Loss(tokens=max(0.0, lost), has_changed=has_changed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether to begin a cycle.

    Attributes:
        begins: whether.
        reason: in words.
        gain_seconds: of serving that it is expected to save.
        cost_seconds: that it is expected to cost.
    """

    begins: bool
    reason: str
    gain_seconds: float = 0.0
    cost_seconds: float = 0.0


def decide(
    economics: Economics,
    *,
    accepted_length: float,
    expected_gain: float,
    loss: Loss,
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
        loss: what was accepted before and is no more.
        busy_share: of the time that the engines are serving, 0 to 1.
        cycle_seconds: of idle time that a cycle takes.
    """
    gain = max(expected_gain, loss.tokens)
    saved = gain / (1.0 + max(0.0, accepted_length) + gain) if gain > 0 else 0.0
    gain_seconds = busy_share * economics.horizon_seconds * saved
    cost_seconds = economics.idle_price * cycle_seconds
    begins = gain_seconds > cost_seconds
    why = "earlier cycles brought as much"
    if loss.has_changed:
        why = "the traffic has changed"
    elif loss.tokens > expected_gain:
        why = "as many were accepted before"
    reason = (
        f"{gain:.3f} more accepted tokens a round ({why}) would save {gain_seconds:.1f} s, "
        f"{'more' if begins else 'not more'} than the {cost_seconds:.1f} s that a cycle costs"
    )
    return Decision(
        begins=begins,
        reason=reason,
        gain_seconds=gain_seconds,
        cost_seconds=cost_seconds,
    )
