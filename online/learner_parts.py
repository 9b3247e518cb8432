"""What a learner works with. Needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paceline.caches.drafter_registry import DrafterRegistry
from paceline.online.idle import IdleGate
from paceline.online.looks import Looks
from paceline.online.passage_teaching import PassageTeacher
from paceline.online.ranks import Ranks
from paceline.online.replay import Replay


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerParts:
    """What a learner works with.

    Attributes:
        replay: what was said of late.
        teacher: knows what the target would have said.
        registry: of the drafter's versions.
        gate: says when there is time.
        looks: at it, between parts of the work; what is to end that is known to it.
        ranks: processes that share the training.
        device: torch's, where is trained.
    """

    replay: Replay
    teacher: PassageTeacher
    registry: DrafterRegistry
    gate: IdleGate
    looks: Looks
    ranks: Ranks
    device: Any = "cpu"
