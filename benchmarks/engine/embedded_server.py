"""The embedded engine, made to say recorded replies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import torch

from paceline.adapters.embedded.engine import EmbeddedEngine, GenerationRequest, Job, Progress
from paceline.adapters.embedded.sampling import SamplingParams
from paceline.adapters.embedded.target import Target, TargetSequence
from paceline.adapters.speculator import RequestInfo, Speculator
from paceline.benchmarks.engine.records import Step, WorkRequest
from paceline.benchmarks.engine.stepping import Row, StepLog
from paceline.errors import EngineError


class ForcedTarget(Target):
    """A target whose next sequence says what it is told to.

    No token ends a reply, since the recorded one may hold any.

    Attributes:
        draft_ids: drafted tokens that the last forward pass verified.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        self.eos_token_ids = frozenset()
        self.draft_ids: Sequence[int] = ()
        self._reply: Sequence[int] = ()

    def force(self, reply: Sequence[int]) -> None:
        """Have the next sequence's reply be `reply`, at least one token."""
        self._reply = reply

    def sequence(self) -> TargetSequence:
        """An empty sequence that wants the reply."""
        return ForcedSequence(self, self._reply)


class ForcedSequence(TargetSequence):
    """A sequence whose logits want the recorded tokens; all else costs what it costs.

    Args:
        target: told which tokens were drafted.
        reply: what is to be said after the prompt.
    """

    def __init__(self, target: ForcedTarget, reply: Sequence[int]) -> None:
        super().__init__(target.model)
        self._target = target
        self._reply = reply
        self._num_prompt = 0

    def prefill(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Take the prompt; returns logits that want the reply's first token."""
        logits = super().prefill(token_ids).clone()  # made in inference mode: not to be written to
        self._num_prompt = len(token_ids)
        self._target.draft_ids = ()
        logits[self._reply[0]] = torch.finfo(logits.dtype).max
        return logits

    def extend(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Take more tokens; returns logits that want the reply's token after each of them."""
        position = len(self) - self._num_prompt + 1
        logits = super().extend(token_ids).clone()
        self._target.draft_ids = tuple(token_ids[1:])
        for row, wanted in enumerate(self._reply[position : position + len(token_ids)]):
            logits[row, wanted] = torch.finfo(logits.dtype).max
        return logits


class TimedSpeculator(Speculator):
    """A speculator whose calls count as drafting.

    Args:
        log: where their time goes.
    """

    def __init__(self, log: StepLog) -> None:
        super().__init__()
        for name in ("begin", "observe", "propose", "finish"):
            setattr(self, name, log.drafting(getattr(self, name)))


class EmbeddedServer:
    """The embedded engine on its own thread, driven from this process's event loop.

    Args:
        target: what speaks.
        speculate: whether it drafts.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        target: ForcedTarget,
        *,
        speculate: bool,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._target = target
        self._log = StepLog(clock)
        self._engine = EmbeddedEngine(target, TimedSpeculator(self._log) if speculate else None)
        self._engine.start()
        self._alone = asyncio.Lock()

    async def generate(self, request: WorkRequest) -> AsyncIterator[Sequence[int]]:
        """The reply's tokens, piece by piece as they come.

        Raises:
            EngineError: the engine failed.
        """
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Progress] = asyncio.Queue()
        num_said = 0

        def on_progress(progress: Progress) -> None:
            nonlocal num_said
            self._log.observe([self._row(request, num_said)])
            self._log.end()
            self._log.begin()
            num_said += len(progress.token_ids)
            loop.call_soon_threadsafe(pieces.put_nowait, progress)

        async with self._alone:  # the target is told one reply at a time
            self._target.force(request.output_ids)
            self._log.begin()
            self._engine.submit(Job(_generation(request), on_progress))
            while True:
                progress = await pieces.get()
                if progress.error is not None:
                    raise EngineError(f"request {request.request_id!r}: {progress.error}")
                yield progress.token_ids
                if progress.finish_reason is not None:
                    return

    async def make_cold(self) -> None:
        """Forget the steps so far; the memory is cold for a tenant it has not seen."""
        self._log.take()

    async def take_steps(self) -> list[Step]:
        """The engine's steps since the last call."""
        return self._log.take()

    def close(self) -> None:
        """Stop the engine's thread."""
        self._engine.close()

    def _row(self, request: WorkRequest, num_said: int) -> Row:
        draft_ids = self._target.draft_ids
        return Row(
            request_id=request.request_id,
            reply=request.output_ids,
            position=num_said,
            num_scheduled=len(draft_ids) + 1 if num_said else len(request.prompt_ids),
            draft_ids=draft_ids,
        )


def _generation(request: WorkRequest) -> GenerationRequest:
    return GenerationRequest(
        info=RequestInfo(
            request_id=request.request_id, tenant=request.tenant, session=request.session
        ),
        prompt_ids=request.prompt_ids,
        max_tokens=len(request.output_ids),
        sampling=SamplingParams(temperature=0),
    )
