"""What the learner remembers over a restart, and what it shows of itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import msgspec

from paceline.caches.drafter_versions import DrafterVersion
from paceline.online.looks import Longest
from paceline.online.worthwhile import RecentLooks

logger = logging.getLogger("paceline.learner")

EVENTS: Final = (
    *("cycles", "steps", "tokens", "published", "rejected", "promoted", "rolled_back"),
    *("not_worthwhile", "interrupted", "dropped", "unsound"),
)
"""Of `LearnerFigures.events`."""
OPEN_STATES: Final = frozenset({"candidate", "canary"})
"""Of a version whose verdict is still to come."""
MOST_PATIENCE: Final = 8
"""Times the usual traffic that is waited for after cycles that came to nothing."""
KEPT_GAINS: Final = 32


class LearnerNotes(msgspec.Struct, kw_only=True):
    """What the learner remembers over a restart.

    Attributes:
        said_at: tokens of the target's that had been seen when a cycle was last thought about.
        patience: times the usual number of new tokens that it waits for now.
        num_cycles: begun so far.
        gains: what cycles have brought, the newest last: accepted tokens a round.
        recent: how the version that runs does on what was said of late.
        known: newest version whose end has been taken in.
    """

    said_at: int = 0
    patience: int = 1
    num_cycles: int = 0
    gains: list[float] = []
    recent: RecentLooks = msgspec.field(default_factory=RecentLooks)
    known: int = 0

    @classmethod
    def read(cls, file: Path) -> Self:
        """From a file; anew where it is missing or damaged."""
        try:
            return msgspec.json.decode(file.read_bytes(), type=cls)
        except FileNotFoundError:
            return cls()
        except (OSError, msgspec.DecodeError) as error:
            logger.warning("%s cannot be read (%s); the learner begins anew", file, error)
            return cls()

    def take_in(self, versions: Sequence[DrafterVersion], events: dict[str, int]) -> list[float]:
        """Note what has become of versions since the last call, up to one that is being tried.

        Args:
            versions: of the group, the oldest first.
            events: counters of `LearnerFigures`, added to.

        Returns:
            What each has brought, accepted tokens a round; at most zero where it was refused.
        """
        found: list[float] = []
        for version in versions:
            if version.version <= self.known:
                continue
            if version.state in OPEN_STATES:
                break
            self.known = version.version
            if version.gate is None:
                continue
            gained = version.gate.after - version.gate.before
            if version.state in {"current", "retired"}:
                events["promoted"] += 1
                self.patience = 1
            else:
                gained = min(gained, 0.0)
                events[version.state] += 1
                self.patience = min(2 * self.patience, MOST_PATIENCE)
            found.append(gained)
        self.gains = [*self.gains, *found][-KEPT_GAINS:]
        return found

    def save(self, file: Path) -> None:
        """To a file, whole or not at all."""
        beside = file.with_suffix(".new")
        beside.write_bytes(msgspec.json.encode(self))
        beside.rename(file)


@dataclass(slots=True)
class LearnerFigures:
    """What the learner has done since it was started, and does now.

    Attributes:
        phase: one of `paceline.online.idle_time.PHASES`.
        events: counters, by kind.
        base: version that is trained from, or would be.
        progress: of the training, 0 to 1.
        loss: of its last step.
        longest_part_seconds: longest time in which the last training did not look at the gate.
        longest: parts of all work between two looks, by kind, since the start.
        reason: what was done last, or why nothing was.
    """

    phase: str = "waiting"
    events: dict[str, int] = field(default_factory=lambda: dict.fromkeys(EVENTS, 0))
    base: int = 0
    progress: float = 0.0
    loss: float = 0.0
    longest_part_seconds: float = 0.0
    longest: Mapping[str, Longest] = field(default_factory=dict)
    reason: str = ""
