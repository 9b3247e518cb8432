"""Training a drafter on lessons, so that it can stop at any step and go on. Needs torch."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from paceline.errors import RecordError
from paceline.online.lessons import Lesson
from paceline.online.looks import never
from paceline.online.paused_file import PausedFile
from paceline.online.ranks import Ranks
from paceline.online.settings import Objective
from paceline.online.student import Student, weight_of

MAX_NORM: Final = 1.0
WEIGHT_DECAY: Final = 0.01
BETAS: Final = (0.9, 0.95)
WARM_UP: Final = 0.05
LAST_RATE: Final = 0.05
"""Share of the steps in which the learning rate rises, and of the rate that is left at the end."""
PART_NUMBERS: Final = 1 << 20
"""Weights that are changed at a time, where no one parameter has more: some 5 ms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingLimits:
    """How long training goes on and how.

    Attributes:
        steps: most steps, None for as many as `seconds` allow.
        seconds: most time, None for as long as `steps` take.
        batch: lessons of a step.
        learning_rate: at its highest.
        seed: of the order of lessons.
        objective: what is minimised.
    """

    steps: int | None
    seconds: float | None
    batch: int
    learning_rate: float
    seed: int
    objective: Objective = "forward_kl"

    def progress(self, steps: int, seconds: float) -> float:
        """How much of the training is done, 0 to 1."""
        by_steps = 0.0 if self.steps is None else steps / self.steps
        by_time = 0.0 if self.seconds is None else seconds / max(self.seconds, 1e-9)
        return min(1.0, max(by_steps, by_time))


class Trainer:
    """AdamW over a student's weights; its rate rises, then falls along a cosine.

    With a limit of steps alone the result does not depend on where training was interrupted.

    Args:
        student: trained in place.
        lessons: at least one.
        limits: when to end.
        clock: seconds that only grow.
        ranks: processes that share the work, all with the same student, lessons and limits.
        pause: called between parts of a step's gradients.
        rest: called between parts of what must not end halfway, as weights would be changed in part
            or a checkpoint be taken for damaged; does not raise.

    Attributes:
        num_steps: done so far.
        seconds: spent in them.
        loss: of the last step.
    """

    def __init__(
        self,
        student: Student,
        lessons: Sequence[Lesson],
        limits: TrainingLimits,
        *,
        clock: Callable[[], float],
        ranks: Ranks | None = None,
        pause: Callable[[], None] = never,
        rest: Callable[[], None] = never,
    ) -> None:
        self.num_steps = 0
        self.seconds = 0.0
        self.loss = math.nan
        self._student = student
        self._lessons = lessons
        self._limits = limits
        self._clock = clock
        self._ranks = Ranks() if ranks is None else ranks
        self._pause = pause
        self._rest = rest
        self._optimiser = torch.optim.AdamW(
            student.trained, lr=limits.learning_rate, betas=BETAS, weight_decay=WEIGHT_DECAY
        )

    @property
    def progress(self) -> float:
        """How much is done, 0 to 1."""
        return self._limits.progress(self.num_steps, self.seconds)

    def run(self) -> Iterator[float]:
        """Train to the end; yields `progress` after each step."""
        while self.progress < 1.0:
            started = self._clock()
            self._step()
            self.num_steps += 1
            self.seconds += self._clock() - started
            yield self.progress

    def save(self, file: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {
            "num_steps": self.num_steps,
            "seconds": self.seconds,
            "weights": [parameter.detach() for parameter in self._student.trained],
            "optimiser": self._optimiser.state_dict(),
        }
        descriptor, beside = tempfile.mkstemp(dir=file.parent)
        with PausedFile(descriptor, "wb", self._rest) as opened:
            torch.save(state, opened)
            os.fsync(opened.fileno())
        Path(beside).rename(file)

    def restore(self, file: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            RecordError: it is damaged, or of another drafter.
        """
        try:
            # to the CPU first: it may go on on another device than it was saved on
            with PausedFile(file, "rb", self._rest) as opened:
                state: dict[str, Any] = torch.load(opened, map_location="cpu", weights_only=True)
            with torch.no_grad():
                for mine, saved in zip(self._student.trained, state["weights"], strict=True):
                    mine.copy_(saved)
            self._optimiser.load_state_dict(state["optimiser"])
            self.num_steps, self.seconds = state["num_steps"], state["seconds"]
        except Exception as error:  # torch raises bare ones for what it cannot read
            raise RecordError(
                f"{file} is damaged or of another drafter ({error}); delete it to train anew"
            ) from error

    def _step(self) -> None:
        for group in self._optimiser.param_groups:
            group["lr"] = self._limits.learning_rate * rate(self.progress)
        self._optimiser.zero_grad(set_to_none=True)
        chosen = chosen_lessons(
            len(self._lessons), self.num_steps, self._limits.batch, self._limits.seed
        )
        step = [self._lessons[i] for i in chosen]
        self.loss = self._student.learn(
            self._ranks.share(step),
            objective=self._limits.objective,
            total_weight=weight_of(step),
            pause=self._pause,
        )
        self._ranks.add_up(self._student.trained)
        self._change_weights()

    def _change_weights(self) -> None:
        """Clip the gradients and take the optimiser's step, some parameters at a time."""
        learned = [it for it in self._student.trained if it.grad is not None]
        parts = [*_parts(learned, PART_NUMBERS)]
        norms: list[torch.Tensor] = []
        for part in parts:
            norms.append(
                torch.nn.utils.get_total_norm([it.grad for it in part if it.grad is not None])
            )
            self._rest()
        if not norms:
            return
        norm = torch.linalg.vector_norm(torch.stack(norms))
        gradients = {it: it.grad for it in learned}
        self._optimiser.zero_grad(set_to_none=True)
        for part in parts:
            for it in part:
                it.grad = gradients[it]
            torch.nn.utils.clip_grads_with_norm_(part, MAX_NORM, norm)
            self._optimiser.step()  # of those that have a gradient
            self._optimiser.zero_grad(set_to_none=True)
            self._rest()


def _parts(
    parameters: Sequence[torch.nn.Parameter], most: int
) -> Iterator[Sequence[torch.nn.Parameter]]:
    """Parameters that follow one another and have at most `most` numbers, or one."""
    first, num = 0, 0
    for i, parameter in enumerate(parameters):
        num += parameter.numel()
        if i > first and num > most:
            yield parameters[first:i]
            first, num = i, parameter.numel()
    if first < len(parameters):
        yield parameters[first:]


def rate(progress: float) -> float:
    """The learning rate's share of its highest, when `progress` of the training is done."""
    if progress < WARM_UP:
        return max(progress / WARM_UP, LAST_RATE)
    turn = math.pi * (progress - WARM_UP) / (1 - WARM_UP)
    return LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(turn)) / 2


def chosen_lessons(num_lessons: int, step: int, batch: int, seed: int) -> list[int]:
    """Lessons of a step: each once before any is taken again, in another order every time.

    Depends on nothing but its arguments. O(num_lessons).
    """
    chosen: list[int] = []
    first = step * batch
    for at in range(first, first + batch):
        turn, place = divmod(at, num_lessons)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + turn)
        chosen.append(int(torch.randperm(num_lessons, generator=generator)[place]))
    return chosen
