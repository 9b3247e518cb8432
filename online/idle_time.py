"""Where a learner's time goes: how loaded engines were, whether the gate was open, what it did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

Level = Literal["idle", "some", "full"]
"""Load below the gate's low mark, between its marks, above the high one or unknown."""
WAITING: Final = "waiting"
WORK: Final = frozenset({"teaching", "training", "judging"})
"""Phases that make a drafter better, or find out whether it is."""
PHASES: Final = (WAITING, "teaching", "training", "judging", "storing")
"""What a learner does: nothing, for want of tokens or of a verdict; has texts read; trains; replays
drafters; reads and writes drafters and checkpoints."""


class Spell(NamedTuple):
    """What held for some time.

    Attributes:
        level: how loaded the most loaded source was by the last look, or what it told since.
        is_open: whether the gate was.
        phase: of `PHASES`, what the learner did, or stood still in.
    """

    level: Level
    is_open: bool
    phase: str


class IdleTime:
    """Seconds by what held in them. Not safe to use from several threads."""

    def __init__(self) -> None:
        self._seconds: dict[Spell, float] = {}

    def add(self, spell: Spell, seconds: float) -> None:
        """So many more seconds in which that held. O(1)."""
        self._seconds[spell] = self._seconds.get(spell, 0.0) + seconds

    def seconds(self) -> dict[Spell, float]:
        """All that has been seen so far; a copy."""
        return dict(self._seconds)


def idle_to_use(seconds: Mapping[Spell, float]) -> tuple[float, float]:
    """(idle seconds in which there was something to learn, of them those that were used).

    Idle is what the sources say, from the first look that finds them so, whether or not the gate
    has opened yet; with engines alone and the default marks: no request runs or waits. Used is what
    teaching, training and judging took of it; storing is not.
    """
    idle = [(spell, its) for spell, its in seconds.items() if spell.level == "idle"]
    to_use = sum(its for spell, its in idle if spell.phase != WAITING)
    used = sum(its for spell, its in idle if spell.is_open and spell.phase in WORK)
    return to_use, used
