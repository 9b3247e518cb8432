"""What a drafter learns from: replies of the target with its likeliest tokens, kept on disk.

A shard holds the replies of one batch and appears whole or not at all, so that writing them can
stop anywhere and go on behind the last shard.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from paceline.errors import RecordError
from paceline.online.looks import never

COMPLETE: Final = "complete"
PATTERN: Final = "shard-*.npz"


@dataclass(frozen=True, slots=True)
class Lesson:
    """A prompt, the target's reply, and how likely it found which tokens.

    Of a text that the target only read, all but the first token is the reply.

    Attributes:
        token_ids: prompt and reply, int32 (tokens,).
        num_prompt: of them the prompt's, at least one.
        top_ids: likeliest tokens for each token of the reply, best first, int32 (reply, k).
        top_logprobs: their log probabilities, float16 (reply, k).
        weights: what each token of the reply counts for, float16 (reply,); None for 1 each.
    """

    token_ids: npt.NDArray[np.int32]
    num_prompt: int
    top_ids: npt.NDArray[np.int32]
    top_logprobs: npt.NDArray[np.float16]
    weights: npt.NDArray[np.float16] | None = None

    @property
    def num_reply(self) -> int:
        """Tokens of the reply."""
        return len(self.top_ids)


class LessonShards:
    """Lessons in a folder, a file for each batch of replies; about 6 k + 4 bytes a token.

    Weights take two bytes more, where a batch has any.

    Args:
        folder: made if missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    @property
    def is_complete(self) -> bool:
        """Whether no more lessons will be added."""
        return (self._folder / COMPLETE).exists()

    @property
    def num_shards(self) -> int:
        """Batches written so far."""
        return len(self._files())

    @property
    def num_bytes(self) -> int:
        """What they take on disk."""
        return sum(file.stat().st_size for file in self._files())

    def complete(self) -> None:
        """Say that no more will be added."""
        (self._folder / COMPLETE).touch()

    def add(self, lessons: Sequence[Lesson], *, seconds: float) -> None:
        """Write the next shard.

        Args:
            lessons: of one batch, with the same k; maybe none.
            seconds: what they took to write.
        """
        name = self._folder / f"shard-{self.num_shards:06d}.npz"
        arrays: dict[str, Any] = {
            "token_ids": _joined([lesson.token_ids for lesson in lessons]),
            "top_ids": _joined([lesson.top_ids for lesson in lessons]),
            "top_logprobs": _joined([lesson.top_logprobs for lesson in lessons]),
            "num_tokens": np.array([len(lesson.token_ids) for lesson in lessons], np.int64),
            "num_prompt": np.array([lesson.num_prompt for lesson in lessons], np.int64),
            "seconds": np.array(seconds),
        }
        if any(lesson.weights is not None for lesson in lessons):
            arrays["weights"] = _joined([_weights_of(lesson) for lesson in lessons])
        descriptor, beside = tempfile.mkstemp(dir=self._folder)
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, **arrays)
        Path(beside).rename(name)

    def read(self, *, pause: Callable[[], None] = never) -> tuple[list[Lesson], float]:
        """All lessons in the order they were added, and the seconds they took.

        Args:
            pause: called after each shard.

        Raises:
            RecordError: a shard is damaged.
        """
        lessons: list[Lesson] = []
        seconds = 0.0
        for file in self._files():
            try:
                with np.load(file) as arrays:
                    lessons += _unpacked(arrays)
                    seconds += float(arrays["seconds"])
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                raise RecordError(
                    f"{file} is damaged ({error}); delete the folder of replies to write them anew"
                ) from error
            pause()
        return lessons, seconds

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob(PATTERN))


def _joined(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0)


def _weights_of(lesson: Lesson) -> npt.NDArray[np.float16]:
    if lesson.weights is None:
        return np.ones(lesson.num_reply, np.float16)
    return lesson.weights


def _unpacked(arrays: Any) -> list[Lesson]:
    num_tokens, num_prompt = arrays["num_tokens"], arrays["num_prompt"]
    token_ids, top_ids, top_logprobs = (
        arrays[name] for name in ("token_ids", "top_ids", "top_logprobs")
    )
    weights = arrays.get("weights")  # older shards have none
    ends = np.cumsum([0, *num_tokens]).tolist()
    replies = np.cumsum([0, *(num_tokens - num_prompt)]).tolist()
    return [
        Lesson(
            token_ids=token_ids[a:b],
            num_prompt=int(prompt),
            top_ids=top_ids[c:d],
            top_logprobs=top_logprobs[c:d],
            weights=None if weights is None else weights[c:d],
        )
        for (a, b), (c, d), prompt in zip(
            pairwise(ends), pairwise(replies), num_prompt, strict=True
        )
    ]
