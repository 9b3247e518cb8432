"""Every way of drafting on the same prompts, with one target."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from paceline.adapters.embedded.engine import EmbeddedEngine
from paceline.adapters.embedded.engine_settings import EngineSettings
from paceline.adapters.embedded.prefixes import PrefixStore
from paceline.adapters.embedded.requests import GenerationRequest
from paceline.adapters.embedded.sampling import SamplingParams
from paceline.adapters.embedded.target import Target
from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from paceline.benchmarks.engine.run import installed_code
from paceline.benchmarks.exact.answers import answer_all
from paceline.benchmarks.exact.prompts import Prompt
from paceline.benchmarks.exact.records import (
    MODES,
    OFF,
    BatchResult,
    ExactSettings,
    Mode,
    ModeResult,
    read_batch,
    write_batch,
)
from paceline.errors import EngineError

KEPT_BYTES: Final = 2 << 30
"""For the prompts of a batch: each is read once, for all modes."""


class DraftingMode:
    """One way of drafting: an engine with a memory of its own.

    Args:
        mode: which.
        engine: not started.
        speculator: its memory, None without.
        clock: monotonic seconds.
        cpu_clock: seconds that this process has computed for; one mode runs at a time.
    """

    def __init__(
        self,
        mode: Mode,
        engine: EmbeddedEngine,
        speculator: Speculator | None,
        clock: Callable[[], float],
        *,
        cpu_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self.mode = mode
        self._engine = engine
        self._speculator = speculator
        self._clock = clock
        self._cpu_clock = cpu_clock

    def run(self, requests: Sequence[GenerationRequest]) -> ModeResult:
        """Answer a batch.

        Raises:
            EngineError: a request failed, or drafting did.
        """
        counts = self._engine.counts
        before, drafting = replace(counts), replace(self._engine.draft_counts)
        cpu_began, began = self._cpu_clock(), self._clock()
        answers = answer_all(self._engine, requests, clock=self._clock)
        if self._engine.draft_failures.count:
            raise EngineError(f"drafting failed in mode {self.mode.name}; see the log")
        now = self._engine.draft_counts
        return ModeResult(
            replies=tuple(tuple(answer.token_ids) for answer in answers),
            seconds=max(answer.last_at for answer in answers) - began,
            cpu_seconds=self._cpu_clock() - cpu_began,
            rounds=counts.rounds - before.rounds,
            drafted=counts.draft_tokens - before.draft_tokens,
            accepted=counts.accepted_tokens - before.accepted_tokens,
            passes=now.model_passes - drafting.model_passes,
            with_model=now.rounds_with_model - drafting.rounds_with_model,
            without_model=now.rounds_without_model - drafting.rounds_without_model,
            cut=now.cut_tokens - drafting.cut_tokens,
        )

    def remember(self, requests: Sequence[GenerationRequest], result: ModeResult) -> None:
        """Take a batch that was answered in an earlier run into memory."""
        if self._speculator is None:
            return
        for request, reply in zip(requests, result.replies, strict=True):
            text = np.array([*request.prompt_ids, *reply], np.int32)
            self._speculator.begin(request.info, request.prompt_ids)
            self._speculator.observe([request.info.request_id], [text], [len(text)])
            self._speculator.finish(request.info.request_id)


@contextmanager
def running_modes(
    settings: ExactSettings, target: Target, drafter: Target | None, clock: Callable[[], float]
) -> Iterator[tuple[EmbeddedEngine, list[DraftingMode]]]:
    """An engine that reads prompts, and all modes, on one target and one store of prompts."""
    prefixes = PrefixStore(KEPT_BYTES)

    def engine(mode: Mode, speculator: Speculator | None) -> EmbeddedEngine:
        return EmbeddedEngine(
            target,
            speculator,
            EngineSettings(
                max_running=settings.concurrency,
                max_draft_tokens=settings.draft_tokens,
                max_branches=mode.branches,
                max_draft_steps=settings.draft_steps,
                always_draft=settings.always_draft,
            ),
            drafter=drafter if mode.model else None,
            prefixes=prefixes,
        )

    with ExitStack() as stack:
        modes = []
        reader = engine(OFF, None)
        engines = [reader]
        for mode in MODES:
            if (mode.model and drafter is None) or mode.name not in (OFF.name, *settings.modes):
                continue
            speculator = Speculator() if mode.memory else None
            engines.append(engine(mode, speculator))
            modes.append(DraftingMode(mode, engines[-1], speculator, clock))
        for each in engines:
            each.start()
            stack.callback(each.close)
        yield reader, modes


def generation_requests(
    settings: ExactSettings, prompts: Sequence[Prompt], first: int, *, output_tokens: int
) -> list[GenerationRequest]:
    """Requests for `prompts`, the first of which is number `first` of the run."""
    return [
        GenerationRequest(
            info=RequestInfo(
                request_id=f"{prompt.source}/{first + i}/{output_tokens}",
                tenant=prompt.source,
                session=prompt.session,
            ),
            prompt_ids=prompt.token_ids,
            max_tokens=output_tokens,
            sampling=SamplingParams(settings.temperature, settings.top_p, first + i),
        )
        for i, prompt in enumerate(prompts)
    ]


def batches(settings: ExactSettings, prompts: Sequence[Prompt]) -> Iterator[Sequence[Prompt]]:
    """As many prompts as are in flight, of one source each; the sources take turns."""
    by_source = [
        [prompt for prompt in prompts if prompt.source == source] for source in settings.sources
    ]
    size = settings.concurrency
    for start in range(0, settings.prompts, size):
        for mine in by_source:
            yield mine[start : start + size]


def run_modes(
    settings: ExactSettings,
    prompts: Sequence[Prompt],
    target: Target,
    drafter: Target | None,
    folder: Path,
    *,
    clock: Callable[[], float],
    on_done: Callable[[int], None],
) -> list[BatchResult]:
    """All modes on all prompts, a batch at a time.

    A batch whose result lies in `folder` already is not answered again, but remembered.

    Args:
        settings: of the run.
        prompts: in the order of `batches`.
        target: what speaks.
        drafter: what drafts, None: modes with a model are left out.
        folder: where results go.
        clock: monotonic seconds.
        on_done: told how many prompts are done.
    """
    results = []
    first = 0
    digest = f"{settings.digest()}-{installed_code()}"
    with running_modes(settings, target, drafter, clock) as (reader, modes):
        for batch in batches(settings, prompts):
            file = folder / f"{batch[0].source}-{first}-{digest}.json"
            length = settings.output_tokens
            requests = generation_requests(settings, batch, first, output_tokens=length)
            result = read_batch(file)
            if result is None:
                reading = generation_requests(settings, batch, first, output_tokens=1)
                answer_all(reader, reading, clock=clock)
                done = {mode.mode.name: mode.run(requests) for mode in modes}
                result = BatchResult(source=batch[0].source, modes=done)
                write_batch(result, file)
            else:
                for mode in modes:
                    mode.remember(requests, result.modes[mode.mode.name])
            results.append(result)
            first += len(batch)
            on_done(len(batch))
    return results
