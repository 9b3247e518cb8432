"""Teachers of passages: what the target would have said after each of their tokens.

All give the same: a lesson whose reply is all but the passage's first token. Needs no torch; a
target in this process comes as `teacher.Teacher`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from paceline.online.lesson_cache import LessonCache
from paceline.online.lessons import Lesson
from paceline.online.passages import Passage

READ_WEIGHT: Final = 0.25
"""What a token that was read counts for beside one that the target said."""


class PassageTeacher(Protocol):
    """Says how likely the target finds which tokens."""

    def teach(self, passages: Sequence[Passage]) -> list[Lesson]:
        """Lessons of the first passages, as many as there was leave to teach, in their order.

        Raises:
            LearningError: the target cannot be asked.
        """


class Reader(Protocol):
    """What `TargetTeacher` needs of `teacher.Teacher`."""

    def readings(self, texts: Sequence[Sequence[int]]) -> list[Lesson]:
        """A lesson for each text of at least two tokens."""


def lesson_of(
    passage: Passage,
    top_ids: npt.NDArray[np.int32],
    top_logprobs: npt.NDArray[np.float16],
    read_weight: float,
) -> Lesson:
    """The lesson that a passage becomes.

    Args:
        passage: at least two tokens.
        top_ids: int32 (tokens - 1, k), likeliest tokens after each but the last.
        top_logprobs: float16 (tokens - 1, k).
        read_weight: what a token counts for that was read; one that was said counts 1.
    """
    return Lesson(
        token_ids=passage.token_ids,
        num_prompt=1,
        top_ids=top_ids,
        top_logprobs=top_logprobs,
        weights=np.where(passage.is_said[1:], 1.0, read_weight).astype(np.float16),
    )


class TargetTeacher:
    """A target of this process reads the passages.

    Args:
        reader: with the target.
        read_weight: see `lesson_of`.
    """

    def __init__(self, reader: Reader, *, read_weight: float = READ_WEIGHT) -> None:
        self._reader = reader
        self._read_weight = read_weight

    def teach(self, passages: Sequence[Passage]) -> list[Lesson]:
        """See `PassageTeacher`; all of them."""
        read = self._reader.readings([passage.token_ids.tolist() for passage in passages])
        return [
            lesson_of(passage, lesson.top_ids, lesson.top_logprobs, self._read_weight)
            for passage, lesson in zip(passages, read, strict=True)
        ]


class TextTeacher:
    """No target at hand: what was said is taken for all that could have been.

    A token that was said has probability one, one that was read counts for nothing.
    """

    def teach(self, passages: Sequence[Passage]) -> list[Lesson]:
        """See `PassageTeacher`; all of them."""
        return [
            lesson_of(
                passage,
                passage.token_ids[1:, None].copy(),
                np.zeros((len(passage.token_ids) - 1, 1), np.float16),
                read_weight=0.0,
            )
            for passage in passages
        ]


class CachedTeacher:
    """Asks another teacher only for what it has not taught yet.

    Args:
        teacher: asked where nothing is kept.
        cache: of this teacher's lessons.
        read_weight: see `lesson_of`; the same as the teacher's.
    """

    def __init__(
        self, teacher: PassageTeacher, cache: LessonCache, *, read_weight: float = READ_WEIGHT
    ) -> None:
        self._teacher = teacher
        self._cache = cache
        self._read_weight = read_weight

    def teach(self, passages: Sequence[Passage]) -> list[Lesson]:
        """See `PassageTeacher`."""
        found: dict[int, Lesson] = {}
        missing: list[int] = []
        for number, passage in enumerate(passages):
            kept = self._cache.get(passage)
            if kept is None:
                missing.append(number)
            else:
                found[number] = lesson_of(passage, *kept, self._read_weight)
        taught = self._teacher.teach([passages[number] for number in missing]) if missing else []
        for number, lesson in zip(missing, taught, strict=False):
            self._cache.put(passages[number], lesson.top_ids, lesson.top_logprobs)
            found[number] = lesson
        num_given = next((i for i in range(len(passages)) if i not in found), len(passages))
        return [found[number] for number in range(num_given)]
