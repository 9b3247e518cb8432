"""The engine.

One thread that serves requests in order, speculating for each from the `Speculator`.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from paceline.adapters.embedded.sampling import SamplingParams, draw
from paceline.adapters.embedded.target import Target, TargetSequence
from paceline.adapters.embedded.text import TextStream
from paceline.adapters.failures import FailureLog
from paceline.adapters.speculator import RequestInfo, Speculator
from paceline.errors import EngineError

logger = logging.getLogger("paceline.embedded")

FinishReason = Literal["stop", "length", "abort"]
MAX_WAITING: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What to generate.

    Attributes:
        info: whose request it is.
        prompt_ids: at least one token.
        max_tokens: longest reply, >= 1; with the prompt it fits the context.
        sampling: how to draw.
        stop: strings that end the reply.
        speculate: False answers without drafts.
    """

    info: RequestInfo
    prompt_ids: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams
    stop: tuple[str, ...] = ()
    speculate: bool = True


@dataclass(frozen=True, slots=True)
class Progress:
    """A step of a reply.

    Attributes:
        text: new text, possibly empty.
        token_ids: new tokens.
        finish_reason: why the reply ends with this step, None if it goes on.
        error: what went wrong; the reply ends with it.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None


@dataclass(slots=True)
class EngineCounts:
    """Totals since the start; written by the engine's thread only."""

    requests: int = 0
    aborted: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    rounds: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0


@dataclass(slots=True, eq=False)
class Job:
    """A request on its way through the engine.

    Attributes:
        request: what to generate.
        on_progress: takes each step, on the engine's thread; must not block.
        aborted: set it to end the request within one round.
    """

    request: GenerationRequest
    on_progress: Callable[[Progress], None]
    aborted: threading.Event = field(default_factory=threading.Event)


class EmbeddedEngine:
    """Serves one request after the other on a thread of its own.

    Args:
        target: the model.
        speculator: where drafts come from, None for no speculation.
        max_draft_tokens: most tokens drafted a round; verifying 8 costs about 1.4 times one on a
            small CPU.
    """

    def __init__(
        self, target: Target, speculator: Speculator | None = None, *, max_draft_tokens: int = 8
    ) -> None:
        if max_draft_tokens < 1:
            raise EngineError(
                f"max_draft_tokens is {max_draft_tokens}; give at least 1, or no speculator"
            )
        self.target = target
        self.counts = EngineCounts()
        self.draft_failures = FailureLog(logger, "drafting")
        self._speculator = speculator
        self._max_draft_tokens = max_draft_tokens
        self._waiting: queue.Queue[Job | None] = queue.Queue(MAX_WAITING)
        self._thread = threading.Thread(
            target=self._serve_forever, name="paceline-engine", daemon=True
        )

    def start(self) -> None:
        """Start serving."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            EngineError: too many are waiting.
        """
        try:
            self._waiting.put_nowait(job)
        except queue.Full:
            raise EngineError(
                f"{MAX_WAITING} requests are waiting already; try again later"
            ) from None

    def close(self) -> None:
        """Finish the running job, drop the waiting ones and stop."""
        while True:
            try:
                job = self._waiting.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                job.on_progress(Progress(finish_reason="abort"))
        self._waiting.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def generate(self, request: GenerationRequest) -> Iterator[Progress]:
        """Generate on the caller's thread.

        Each step of the reply, the last with a finish reason.
        """
        yield from self._steps(Job(request, lambda _progress: None))

    def _serve_forever(self) -> None:
        while (job := self._waiting.get()) is not None:
            try:
                for progress in self._steps(job):
                    job.on_progress(progress)
            except Exception as error:  # counted; one request's failure must not end the engine
                self.counts.failed += 1
                logger.exception("request %s failed", job.request.info.request_id)
                job.on_progress(Progress(error=f"the engine failed: {type(error).__name__}"))

    def _steps(self, job: Job) -> Iterator[Progress]:
        request = job.request
        reply = _Reply(request, self.target)
        self.counts.requests += 1
        self.counts.prompt_tokens += len(request.prompt_ids)
        drafting = self._begin(request)
        try:
            sequence = self.target.sequence()
            first = draw(sequence.prefill(request.prompt_ids), request.sampling, 0)
            yield self._accepted(reply, [first])
            while reply.finish_reason is None:
                if job.aborted.is_set():
                    self.counts.aborted += 1
                    yield Progress(finish_reason="abort")
                    return
                draft = self._draft(reply) if drafting else []
                yield self._accepted(reply, self._verify(sequence, reply, draft))
        finally:
            if drafting:
                self._finish(reply)

    def _verify(self, sequence: TargetSequence, reply: _Reply, draft: Sequence[int]) -> list[int]:
        """One round.

        The target reads its last token and the draft, and says its own tokens as far as they agree.
        """
        logits = sequence.extend([reply.token_ids[-1], *draft])
        accepted: list[int] = []
        for offset in range(len(draft) + 1):
            token_id = draw(logits[offset], reply.request.sampling, len(reply.token_ids) + offset)
            accepted.append(token_id)
            if offset == len(draft) or token_id != draft[offset]:
                break
        self.counts.rounds += 1
        self.counts.draft_tokens += len(draft)
        self.counts.accepted_tokens += len(accepted) - 1
        sequence.crop(len(reply.request.prompt_ids) + len(reply.token_ids) + len(accepted) - 1)
        return accepted

    def _accepted(self, reply: _Reply, token_ids: list[int]) -> Progress:
        before = len(reply.token_ids)
        text = reply.take(token_ids)
        new = tuple(reply.token_ids[before:])
        self.counts.generated_tokens += len(new)
        return Progress(text, new, reply.finish_reason)

    def _begin(self, request: GenerationRequest) -> bool:
        """Open the request in the draft memory; False if it goes undrafted."""
        if self._speculator is None:
            return False
        try:
            self._speculator.begin(request.info, request.prompt_ids)
        except Exception as error:  # noqa: BLE001  counted: speculation fails open
            self.draft_failures.record(error)
            return False
        return True

    def _draft(self, reply: _Reply) -> list[int]:
        assert self._speculator is not None
        request_id = reply.request.info.request_id
        try:
            self._sync(reply)
            if not reply.request.speculate:
                return []
            limit = min(self._max_draft_tokens, reply.room - 1)
            tree = self._speculator.propose([request_id], max_tokens=max(0, limit))[0]
        except Exception as error:  # noqa: BLE001  counted: speculation fails open
            self.draft_failures.record(error)
            return []
        return [int(token_id) for token_id in tree.token_ids]

    def _finish(self, reply: _Reply) -> None:
        assert self._speculator is not None
        try:
            self._sync(reply)
            self._speculator.finish(reply.request.info.request_id)
        except Exception as error:  # noqa: BLE001  counted: speculation fails open
            self.draft_failures.record(error)

    def _sync(self, reply: _Reply) -> None:
        assert self._speculator is not None
        tokens = np.array([*reply.request.prompt_ids, *reply.token_ids], np.int32)
        self._speculator.observe([reply.request.info.request_id], [tokens], [len(tokens)])


class _Reply:
    """What has been said so far, and why it ends."""

    def __init__(self, request: GenerationRequest, target: Target) -> None:
        self.request = request
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._eos_token_ids = target.eos_token_ids
        self._text = TextStream(target.tokenizer, request.stop)

    @property
    def room(self) -> int:
        """Tokens that may still be said."""
        return self.request.max_tokens - len(self.token_ids)

    def take(self, token_ids: Sequence[int]) -> str:
        """Append accepted tokens until the reply ends; returns the text to show now."""
        shown: list[str] = []
        for token_id in token_ids:
            self.token_ids.append(token_id)
            if token_id in self._eos_token_ids:
                self.finish_reason = "stop"
                break
            shown.append(self._text.push(token_id))
            if self._text.stopped:
                self.finish_reason = "stop"
                break
            if self.room == 0:
                self.finish_reason = "length"
                break
        if self.finish_reason is not None:
            shown.append(self._text.rest())
            if self._text.stopped:
                self.finish_reason = "stop"
        return "".join(shown)
