"""Several requests put to an embedded engine at once, and what it says to each."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from paceline.adapters.embedded.engine import EmbeddedEngine
from paceline.adapters.embedded.requests import GenerationRequest, Job, Progress
from paceline.errors import EngineError

STEP_SECONDS: Final = 600.0
"""Longest wait for the next piece of any reply."""


@dataclass(slots=True)
class Answer:
    """A reply and when it came, in seconds of the caller's clock.

    Attributes:
        token_ids: what was said.
        first_at: when its first token had come.
        last_at: when its last token had come.
    """

    token_ids: list[int] = field(default_factory=list)
    first_at: float = 0.0
    last_at: float = 0.0


def answer_all(
    engine: EmbeddedEngine, requests: Sequence[GenerationRequest], *, clock: Callable[[], float]
) -> list[Answer]:
    """What a started engine answers, as many requests at a time as it takes.

    Raises:
        EngineError: a request failed, or nothing came for ten minutes.
    """
    pieces: queue.SimpleQueue[tuple[int, Progress, float]] = queue.SimpleQueue()

    def listener(i: int) -> Callable[[Progress], None]:
        return lambda progress: pieces.put((i, progress, clock()))

    for i, request in enumerate(requests):
        engine.submit(Job(request, listener(i)))
    answers = [Answer() for _ in requests]
    num_open = len(requests)
    while num_open:
        try:
            i, progress, at = pieces.get(timeout=STEP_SECONDS)
        except queue.Empty:
            raise EngineError(f"nothing was said for {STEP_SECONDS:.0f} seconds") from None
        if progress.error is not None:
            raise EngineError(f"request {requests[i].info.request_id}: {progress.error}")
        answer = answers[i]
        if not answer.token_ids:
            answer.first_at = at
        answer.token_ids.extend(progress.token_ids)
        if progress.finish_reason is not None:
            answer.last_at = at
            num_open -= 1
    return answers
