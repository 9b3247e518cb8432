"""One cycle of learning: lessons from live traffic, a training on them, what it came to.

Everything is on disk from the first lesson on, so that a cycle can end anywhere and go on. Needs
torch.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from paceline.errors import RecordError
from paceline.online.lessons import Lesson, LessonShards
from paceline.online.looks import Looks, never
from paceline.online.micro_steps import micro_steps
from paceline.online.ranks import Ranks
from paceline.online.student import Student
from paceline.online.training import Trainer, TrainingLimits

logger = logging.getLogger("paceline.learner")

SCHEMA: Final = 1
PLAN: Final = "cycle.json"
LESSONS: Final = "lessons"
CHECKPOINT: Final = "checkpoint.pt"


class CyclePlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a cycle is, noted when it begins.

    Attributes:
        base: version of the drafter that engines run, which it is to be better than.
        start: version whose weights it begins with: the base, or one that the gate refused though
            it seemed better.
        number: of the cycle, also the seed of its order.
        num_passages: that were sampled.
        began_at: Unix time in seconds.
        schema: of this record.
    """

    base: int
    start: int
    number: int
    num_passages: int
    began_at: float
    schema: int = SCHEMA


class CycleFolder:
    """Where a cycle is kept while it runs; there is one at a time.

    Args:
        folder: made when a cycle begins, gone when it ends.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def checkpoint(self) -> Path:
        """The training's."""
        return self.folder / CHECKPOINT

    @property
    def lessons(self) -> LessonShards:
        """What is learned from; only while a cycle runs."""
        return LessonShards(self.folder / LESSONS)

    def plan(self) -> CyclePlan | None:
        """Of the cycle that was under way; None without one, or one that nobody can go on with."""
        try:
            plan = msgspec.json.decode((self.folder / PLAN).read_bytes(), type=CyclePlan)
        except (OSError, msgspec.DecodeError):
            return None
        return plan if plan.schema == SCHEMA else None

    def begin(self, plan: CyclePlan) -> None:
        """Drop what was there and note the plan."""
        self.drop()
        self.folder.mkdir(parents=True)
        beside = self.folder / f"{PLAN}.new"
        beside.write_bytes(msgspec.json.encode(plan))
        beside.rename(self.folder / PLAN)

    def drop(self) -> None:
        """The cycle has ended, or its lessons must not be learned from."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleLimits:
    """How long a cycle learns and how.

    Attributes:
        epochs: times that each lesson is learned from.
        batch: lessons of a step.
        checkpoint_steps: steps between two checkpoints.
        training: what is minimised and how fast.
    """

    epochs: int
    batch: int
    checkpoint_steps: int
    training: Callable[[int, int], TrainingLimits]
    """Of a number of steps and a seed."""

    def num_steps(self, num_lessons: int) -> int:
        """Steps for so many lessons, at least one."""
        return max(1, self.epochs * num_lessons // self.batch)


def train(
    student: Student,
    lessons: Sequence[Lesson],
    plan: CyclePlan,
    folder: CycleFolder,
    limits: CycleLimits,
    *,
    looks: Looks | None = None,
    ranks: Ranks | None = None,
    on_step: Callable[[Trainer], object] = lambda _trainer: None,
    on_phase: Callable[[str], object] = lambda _phase: None,
    clock: Callable[[], float] = time.monotonic,
) -> Trainer:
    """Train to the end, from the checkpoint if there is one.

    Args:
        student: at its base; changed in place.
        lessons: at least one.
        plan: of the cycle.
        folder: keeps checkpoints.
        limits: how long, and how.
        looks: at the gate, between parts of steps and of checkpoints; None for none.
        ranks: processes that share the work.
        on_step: called after each step.
        on_phase: told ``storing`` before a checkpoint is read or written, ``training`` after it.
        clock: monotonic seconds.

    Returns:
        What has trained.

    Raises:
        StoppedError: the training was asked to end; it goes on behind the last whole step.
    """
    trainer = Trainer(
        student,
        lessons,
        limits.training(limits.num_steps(len(lessons)), plan.number),
        clock=clock,
        ranks=ranks,
        pause=never if looks is None else looks.pause,
        rest=never if looks is None else looks.rest,
    )
    saves = ranks is None or ranks.is_first
    if folder.checkpoint.exists():
        on_phase("storing")
        try:
            with _finishing(looks, "checkpoint"):
                trainer.restore(folder.checkpoint)
        except RecordError as error:
            logger.warning("the cycle's training begins anew: %s", error)
            folder.checkpoint.unlink()
    on_phase("training")
    steps = trainer.run()
    try:
        while trainer.progress < 1.0:
            with ExitStack() as stack:
                if looks is not None:
                    stack.enter_context(looks.running("training"))
                    stack.enter_context(micro_steps(student.model, looks.pause))
                next(steps)
            if saves and trainer.num_steps % limits.checkpoint_steps == 0:
                on_phase("storing")
                with _finishing(looks, "checkpoint"):
                    trainer.save(folder.checkpoint)
                on_phase("training")
            on_step(trainer)
    finally:
        on_phase("storing")
        if saves and folder.folder.exists():
            with _finishing(looks, "checkpoint"):
                trainer.save(folder.checkpoint)
    return trainer


def _finishing(looks: Looks | None, kind: str) -> AbstractContextManager[None]:
    return nullcontext() if looks is None else looks.finishing(kind)
