"""The embedded engine, made to say recorded replies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

import torch

from paceline.adapters.embedded.engine import EmbeddedEngine
from paceline.adapters.embedded.engine_settings import EngineSettings
from paceline.adapters.embedded.requests import GenerationRequest, Job, Progress
from paceline.adapters.embedded.sampling import SamplingParams
from paceline.adapters.embedded.target import Row, Target, tree_layout
from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from paceline.benchmarks.engine import stepping
from paceline.benchmarks.engine.records import Step, WorkRequest
from paceline.benchmarks.engine.stepping import StepLog
from paceline.errors import EngineError


class ForcedTarget(Target):
    """A target that says what it is told to; all else costs what it costs.

    No token ends a reply, since the recorded one may hold any.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        self.eos_token_ids = frozenset()
        self._requests: dict[str, WorkRequest] = {}
        self.seen: list[stepping.Row] = []
        """What the last forward pass computed."""

    def force(self, request: WorkRequest) -> None:
        """Have the reply to a request of that id be the recorded one."""
        self._requests[request.request_id] = request

    def forward(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """Read all rows; at every place the logits want the recorded token of its depth."""
        held = [len(row.key_values) for row in rows]
        logits = [row_logits.clone() for row_logits in super().forward(rows)]
        self.seen = []
        for row, num_held, row_logits in zip(rows, held, logits, strict=True):
            request = self._requests[row.request_id]
            offsets, _ = tree_layout(row.num_chained, row.parents)
            said = (
                num_held + 1 - len(request.prompt_ids)
            )  # output tokens that precede the first logits
            for i, offset in enumerate(offsets[len(offsets) - row.num_logits :].tolist()):
                if said + offset < len(request.output_ids):
                    row_logits[i, request.output_ids[said + offset]] = torch.finfo(
                        torch.float32
                    ).max
            self.seen.append(_stepped(row, request, said))
        return logits


def _stepped(row: Row, request: WorkRequest, said: int) -> stepping.Row:
    return stepping.Row(
        request_id=request.request_id,
        reply=request.output_ids,
        position=max(said, 0),
        num_scheduled=len(row.token_ids),
        draft_ids=tuple(row.token_ids[row.num_chained :]),
        parents=tuple(row.parents),
        is_partial=row.num_logits == 0,
    )


class LoggedEngine(EmbeddedEngine):
    """An engine whose steps are written down.

    Args:
        target: what speaks.
        speculator: where drafts come from.
        log: where the steps go.
        settings: limits.
        drafter: a small model that drafts, None for none.
    """

    def __init__(
        self,
        target: ForcedTarget,
        speculator: Speculator | None,
        log: StepLog,
        settings: EngineSettings,
        drafter: Target | None,
    ) -> None:
        super().__init__(target, speculator, settings, drafter=drafter)
        self._forced = target
        self._log = log
        self.outbox: list[Callable[[], object]] = []
        """What is to be done once the step is written down."""

    def step(self) -> None:
        """One forward pass for all requests that run."""
        self._log.begin()
        self._forced.seen = []
        super().step()
        if self._forced.seen:
            self._log.observe(self._forced.seen)
            self._log.end()
        for deliver in self.outbox:
            deliver()
        self.outbox.clear()


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
        speculate: whether its memory drafts.
        drafter: a small model that drafts, None for none; its time counts as drafting.
        settings: limits.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        target: ForcedTarget,
        *,
        speculate: bool,
        drafter: Target | None = None,
        settings: EngineSettings | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._target = target
        self._log = StepLog(clock)
        speculator = TimedSpeculator(self._log) if speculate else None
        if drafter is not None:
            drafter.forward = self._log.drafting(drafter.forward)
        limits = settings or EngineSettings()
        self._engine = LoggedEngine(target, speculator, self._log, limits, drafter)
        self._engine.start()

    async def generate(self, request: WorkRequest) -> AsyncIterator[Sequence[int]]:
        """The reply's tokens, piece by piece as they come.

        Raises:
            EngineError: the engine failed.
        """
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Progress] = asyncio.Queue()

        def on_progress(progress: Progress) -> None:
            put = partial(loop.call_soon_threadsafe, pieces.put_nowait, progress)
            self._engine.outbox.append(put)

        self._target.force(request)
        job = Job(_generation(request), on_progress)
        self._engine.submit(job)
        try:
            while True:
                progress = await pieces.get()
                if progress.error is not None:
                    raise EngineError(f"request {request.request_id!r}: {progress.error}")
                yield progress.token_ids
                if progress.finish_reason is not None:
                    return
        finally:
            job.aborted.set()

    async def make_cold(self) -> None:
        """Forget the steps so far; the memory is cold for a tenant it has not seen."""
        self._log.take()

    async def take_steps(self) -> list[Step]:
        """The engine's steps since the last call."""
        return self._log.take()

    def close(self) -> None:
        """Stop the engine's thread."""
        self._engine.close()


def _generation(request: WorkRequest) -> GenerationRequest:
    return GenerationRequest(
        info=RequestInfo(
            request_id=request.request_id, tenant=request.tenant, session=request.session
        ),
        prompt_ids=request.prompt_ids,
        max_tokens=len(request.output_ids),
        sampling=SamplingParams(temperature=0),
    )
