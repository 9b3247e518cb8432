"""What the learner remembers over a restart, and what it shows of itself."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import msgspec

logger = logging.getLogger("paceline.learner")

EVENTS: Final = (
    *("cycles", "steps", "tokens", "published", "rejected", "promoted", "rolled_back"),
    *("not_worthwhile", "interrupted", "dropped", "unsound"),
)
"""Of `LearnerFigures.events`."""


class LearnerNotes(msgspec.Struct, kw_only=True):
    """What the learner remembers over a restart.

    Attributes:
        said_at: tokens of the target's that had been seen when a cycle was last thought about.
        patience: times the usual number of new tokens that it waits for now.
        num_cycles: begun so far.
        gains: what cycles have brought, the newest last: accepted tokens a round.
        accepted_length: of the version that runs, on held-out sessions when it was last judged,
            alone or beside a candidate; None before it was.
        known: newest version whose end has been taken in.
    """

    said_at: int = 0
    patience: int = 1
    num_cycles: int = 0
    gains: list[float] = []
    accepted_length: float | None = None
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

    def save(self, file: Path) -> None:
        """To a file, whole or not at all."""
        beside = file.with_suffix(".new")
        beside.write_bytes(msgspec.json.encode(self))
        beside.rename(file)


@dataclass(slots=True)
class LearnerFigures:
    """What the learner has done since it was started, and does now.

    Attributes:
        phase: ``waiting``, ``teaching``, ``training`` or ``judging``.
        events: counters, by kind.
        base: version that is trained from, or would be.
        progress: of the training, 0 to 1.
        loss: of its last step.
        longest_part_seconds: longest time in which the last training did not look at the gate.
        reason: what was done last, or why nothing was.
    """

    phase: str = "waiting"
    events: dict[str, int] = field(default_factory=lambda: dict.fromkeys(EVENTS, 0))
    base: int = 0
    progress: float = 0.0
    loss: float = 0.0
    longest_part_seconds: float = 0.0
    reason: str = ""
