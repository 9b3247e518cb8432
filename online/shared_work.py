"""What several processes of one training do together. Needs torch."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from paceline.online.cycle import CycleFolder, CycleLimits, CyclePlan, train
from paceline.online.learner_settings import LearnerSettings
from paceline.online.lessons import Lesson
from paceline.online.opened import open_drafter
from paceline.online.ranks import Ranks
from paceline.online.training import TrainingLimits

logger = logging.getLogger("paceline.learner")


@dataclass(frozen=True, slots=True)
class SharedWork:
    """What the first process tells the others to train with it.

    Attributes:
        folder: of the drafter to begin with.
        target: name of its target.
        lessons: learned from.
        plan: of the cycle.
        work: the cycle's folder, for its checkpoint.
        settings: how.
    """

    folder: str
    target: str
    lessons: list[Lesson]
    plan: CyclePlan
    work: str
    settings: LearnerSettings


NO_WORK: Final[SharedWork | None] = None
"""What the first process says when it ends."""


def cycle_limits(settings: LearnerSettings) -> CycleLimits:
    """How long a cycle learns and how."""
    cycle = settings.cycle

    def training(num_steps: int, seed: int) -> TrainingLimits:
        return TrainingLimits(
            steps=num_steps,
            seconds=None,
            batch=cycle.batch,
            learning_rate=cycle.learning_rate,
            seed=seed,
            objective=cycle.objective,
        )

    return CycleLimits(
        epochs=cycle.epochs,
        batch=cycle.batch,
        checkpoint_steps=cycle.checkpoint_steps,
        training=training,
    )


def follow_first(ranks: Ranks, device: Any) -> None:
    """Train along with the first process until it ends."""
    while (work := ranks.from_first(NO_WORK)) is not None:
        opened = open_drafter(Path(work.folder), target=work.target, device=device)
        try:
            train(
                opened.student,
                work.lessons,
                work.plan,
                CycleFolder(Path(work.work)),
                cycle_limits(work.settings),
                ranks=ranks,
            )
        except RuntimeError as error:  # what torch raises where another process has gone
            logger.warning("the first process has left in the middle of a step: %s", error)
            return
