"""A request's way through the engine as the event loop sees it, whichever API it came by."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from starlette.requests import Request

from paceline.adapters.embedded.engine import EmbeddedEngine
from paceline.adapters.embedded.requests import GenerationRequest, Job, Progress
from paceline.adapters.prediction import PredictionTally
from paceline.api_errors import ApiError
from paceline.errors import EngineError

OVERLOADED: Final = 503
SERVER_ERROR: Final = 500


class PendingReply:
    """A job's steps on the event loop; leaving it before its end aborts the job.

    Raises:
        ApiError: 503, too many requests are waiting.
    """

    def __init__(self, engine: EmbeddedEngine, generation: GenerationRequest) -> None:
        self._generation = generation
        self._steps: asyncio.Queue[Progress] = asyncio.Queue()
        self._num_tokens = 0
        self._num_cached = 0
        predicted = generation.predicted_ids
        self._prediction = PredictionTally(predicted) if predicted else None
        loop = asyncio.get_running_loop()

        def hand_over(progress: Progress) -> None:
            # the loop is closed if the server stopped while the engine was in its last round
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._steps.put_nowait, progress)

        self._job = Job(generation, hand_over)
        try:
            engine.submit(self._job)
        except EngineError as error:
            raise ApiError(OVERLOADED, str(error), "overloaded_error", code="overloaded") from error

    @property
    def num_prompt(self) -> int:
        """Tokens of the prompt."""
        return len(self._generation.prompt_ids)

    @property
    def num_cached(self) -> int:
        """Of these, those that need not be read again, as far as is known."""
        return self._num_cached

    @property
    def num_said(self) -> int:
        """Tokens said so far."""
        return self._num_tokens

    async def steps(self) -> AsyncIterator[Progress]:
        """The steps of the reply, the last one included.

        Raises:
            ApiError: 500, the engine failed.
        """
        try:
            while True:
                progress = await self._steps.get()
                if progress.error is not None:
                    raise ApiError(SERVER_ERROR, progress.error, "api_error")
                self._num_tokens += len(progress.token_ids)
                self._num_cached += progress.num_cached
                if self._prediction is not None:
                    self._prediction.follow(progress.token_ids)
                yield progress
                if progress.finish_reason is not None:
                    return
        finally:
            self.abort()

    async def whole(self, http: Request) -> list[Progress]:
        """All steps; the job is aborted if the client leaves.

        Raises:
            ApiError: 500, the engine failed.
        """
        watcher = asyncio.create_task(self._abort_when_left(http))
        try:
            return [progress async for progress in self.steps()]
        finally:
            watcher.cancel()

    async def _abort_when_left(self, http: Request) -> None:
        while (await http.receive())["type"] != "http.disconnect":
            continue
        self.abort()

    def abort(self) -> None:
        """Have the engine drop the job within one round; harmless after its end."""
        self._job.aborted.set()

    def usage(self) -> dict[str, Any]:
        """Tokens read, of these not read anew, and said so far, in OpenAI's words."""
        usage: dict[str, Any] = {
            "prompt_tokens": self.num_prompt,
            "completion_tokens": self._num_tokens,
            "total_tokens": self.num_prompt + self._num_tokens,
            "prompt_tokens_details": {"cached_tokens": self._num_cached},
        }
        if self._prediction is not None:
            usage["completion_tokens_details"] = self._prediction.usage()
        return usage
