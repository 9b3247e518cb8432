"""Learning from mistakes first: which passages a drafter gets wrong, and where.

A drafter that serves costs a round each time it is wrong, and nothing where it is right. (Online
speculative decoding learns from what the target rejected: OSD, arXiv 2310.07177.) Pure numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from paceline.errors import ConfigError
from paceline.online.lessons import Lesson

EMPHASIS: Final = 2.0
"""What a position counts for where the drafter is wrong, beside one where it is right."""

Guesses = npt.NDArray[np.integer]


def is_wrong(guesses: Guesses, lesson: Lesson) -> npt.NDArray[np.bool_]:
    """Where the drafter's likeliest token is not the target's, bool (reply,).

    Args:
        guesses: the drafter's likeliest token at each token of the reply, (reply,).
        lesson: what the target would have said.

    Raises:
        ConfigError: they are not as many.
    """
    if guesses.shape != (lesson.num_reply,):
        raise ConfigError(
            f"{guesses.shape} guesses were given for a reply of {lesson.num_reply} tokens"
        )
    found: npt.NDArray[np.bool_] = guesses != lesson.top_ids[:, 0]
    return found


def num_wrong(guesses: Guesses, lesson: Lesson) -> float:
    """Positions that the drafter gets wrong, each by what it counts for."""
    wrong = is_wrong(guesses, lesson)
    if lesson.weights is None:
        return float(np.count_nonzero(wrong))
    return float(lesson.weights.astype(np.float64)[wrong].sum())


def hardest(guesses: Sequence[Guesses], lessons: Sequence[Lesson], num: int) -> list[int]:
    """Places of the lessons in which the drafter is wrong most, at most `num`, the worst first.

    Where it is never wrong there is nothing to learn: such lessons are left out. Of two alike the
    first comes first. O(tokens + lessons log lessons).
    """
    wrong = [num_wrong(mine, lesson) for mine, lesson in zip(guesses, lessons, strict=True)]
    order = sorted(range(len(lessons)), key=lambda i: -wrong[i])
    return [i for i in order if wrong[i] > 0][:num]


def emphasised(lesson: Lesson, guesses: Guesses, *, emphasis: float = EMPHASIS) -> Lesson:
    """The lesson with more weight where the drafter is wrong, and as much in all as before.

    Args:
        lesson: not changed.
        guesses: as in `is_wrong`.
        emphasis: at least 1, which changes nothing.

    Raises:
        ConfigError: `emphasis` is less than 1.
    """
    if not emphasis >= 1:
        raise ConfigError(f"emphasis is {emphasis}; give 1 or more")
    plain = np.ones(lesson.num_reply) if lesson.weights is None else lesson.weights.astype(float)
    raised = plain * np.where(is_wrong(guesses, lesson), emphasis, 1.0)
    if raised.sum() > 0:
        raised *= plain.sum() / raised.sum()
    return replace(lesson, weights=raised.astype(np.float16))
