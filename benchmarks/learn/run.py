"""One run of `paceline bench learn`: two workloads one after the other, and marks between."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from paceline.benchmarks.learn.prompts import around, read_prompts
from paceline.benchmarks.learn.records import (
    AnswerWork,
    Examined,
    ExamineWork,
    Mark,
    Speed,
    Workload,
)
from paceline.benchmarks.learn.speeds import measured, speed_work, times_as_fast
from paceline.benchmarks.learn.stack import Stack, run_worker, running_stack
from paceline.benchmarks.replay.tokens import Renderer, load_encoder
from paceline.caches.drafter_registry import DrafterRegistry
from paceline.caches.records import SHARED_GROUP

CHAIN_TOKENS: Final = 8
CACHED: Final = "held-out"
MARKS: Final = "marks.jsonl"
LEARNED: Final = "learned"
SPEED_REPEATS: Final = 3


class LearnBenchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is served and how.

    Attributes:
        traces: folder of recorded traces.
        target: Hugging Face folder, GGUF file or the packaged model's name.
        dtype: what the engine computes in.
        drafter: folder of the drafter that the run begins with.
        workloads: the first one, and what the traffic turns to.
        tokens: said in each of them.
        mark_tokens: said between two marks.
        chunk_tokens: said between two pauses, in which the learner has the machine.
        pause_seconds: longest such pause.
        held_out: prompts of each workload that are never asked but measured by.
        context_tokens: longest prompt.
        output_tokens: longest reply.
        in_flight: requests at a time.
        draft_tokens: most tokens drafted a request and round.
        branches: most drafted tokens that continue one.
        learner: settings of the learner.
    """

    traces: str
    target: str
    dtype: str
    drafter: str
    workloads: tuple[Workload, ...]
    tokens: tuple[int, ...]
    mark_tokens: int
    chunk_tokens: int
    pause_seconds: float
    held_out: int
    context_tokens: int
    output_tokens: int
    in_flight: int
    draft_tokens: int
    branches: int
    learner: dict[str, Any]


class LearnRun:
    """A run, its folder and what it has found so far.

    Args:
        settings: what is served.
        folder: for everything that is written.
        cores: the engine's and the learner's.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: LearnBenchSettings,
        folder: Path,
        cores: tuple[int, int],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.marks: list[Mark] = []
        self._settings = settings
        self._folder = folder
        self._cores = cores
        self._clock = clock
        renderer = Renderer(load_encoder(None if settings.target == "smollm2" else settings.target))
        self._prompts = {
            workload.name: read_prompts(
                Path(settings.traces),
                workload,
                renderer,
                settings.context_tokens,
                settings.held_out,
            )
            for workload in settings.workloads
        }
        self._served = 0
        self._began = 0.0

    def run(self) -> tuple[Speed, Speed]:
        """Serve all; returns the speed with the frozen drafter and with the one that learned."""
        settings = self._settings
        for workload in settings.workloads:
            self._answer_held_out(workload)
        with running_stack(
            settings.target,
            Path(settings.drafter),
            self._folder,
            settings.learner,
            self._cores,
            engine=(
                *("--dtype", settings.dtype, "--max-branches", str(settings.branches)),
                *("--max-draft-tokens", str(settings.draft_tokens)),
            ),
        ) as stack:
            self._began = self._clock()
            best = settings.drafter
            for workload, tokens in zip(settings.workloads, settings.tokens, strict=True):
                self._serve(stack, workload, tokens)
                if workload is settings.workloads[0]:
                    best = self._kept(current_folder(stack.registry)) or best
        named = {"frozen": settings.drafter, "learned": best}
        work = speed_work(
            settings.target,
            settings.dtype,
            list(named.values()),
            self._prompts[settings.workloads[0].name].held_out,
            output=settings.output_tokens,
            in_flight=settings.in_flight,
            draft=settings.draft_tokens,
            branches=settings.branches,
            core=self._cores[0],
        )
        speeds = measured(work, list(named), SPEED_REPEATS, self._folder)
        return speeds["frozen"], speeds["learned"]

    def _kept(self, folder: str) -> str:
        """A copy of a version, as the registry sweeps old ones; "" without one."""
        if not folder:
            return ""
        return str(shutil.copytree(folder, self._folder / LEARNED, dirs_exist_ok=True))

    def _serve(self, stack: Stack, workload: Workload, tokens: int) -> None:
        """One workload's traffic, with its marks."""
        settings = self._settings
        until, mark_at = self._served + tokens, self._served
        prompts = around(self._prompts[workload.name].asked)
        while True:
            if self._served >= mark_at:
                self._mark(stack, workload)
                mark_at += settings.mark_tokens
            if self._served >= until:
                return
            num = max(1, settings.chunk_tokens // settings.output_tokens)
            self._served += stack.ask(
                list(islice(prompts, num)),
                workload=workload.name,
                output_tokens=settings.output_tokens,
                in_flight=settings.in_flight,
            )
            stack.wait_for_learner(settings.pause_seconds, self._clock)

    def _mark(self, stack: Stack, workload: Workload) -> None:
        version = stack.registry.state(SHARED_GROUP).current
        folder = current_folder(stack.registry) or self._settings.drafter
        names = [each.name for each in self._settings.workloads]
        work = ExamineWork(
            (self._settings.drafter, folder),
            tuple(str(self._folder / CACHED / str(i)) for i in range(len(names))),
            CHAIN_TOKENS,
            self._cores[1],
        )
        found = msgspec.convert(run_worker(work, self._folder), list[list[Examined]])
        frozen, learned = (dict(zip(names, its, strict=True)) for its in found)
        mark = Mark(
            workload=workload.name,
            served=self._served,
            seconds=self._clock() - self._began,
            version=version,
            learned=learned,
            frozen=frozen,
        )
        self.marks.append(mark)
        with (self._folder / MARKS).open("ab") as file:  # a run that is broken off has said these
            file.write(msgspec.json.encode(mark) + b"\n")
        said = ", ".join(
            f"{name} {it.agreement:.1%} ({frozen[name].agreement:.1%} frozen), "
            f"{it.accepted_length:.3f} ({frozen[name].accepted_length:.3f})"
            for name, it in learned.items()
        )
        click.echo(f"{mark.served:,} tokens, {mark.seconds:,.0f} s, version {version}: {said}")

    def _answer_held_out(self, workload: Workload) -> None:
        index = self._settings.workloads.index(workload)
        work = AnswerWork(
            self._settings.target,
            tuple(self._prompts[workload.name].held_out),
            self._settings.output_tokens,
            str(self._folder / CACHED / str(index)),
            self._cores[0],
        )
        run_worker(work, self._folder)


def current_folder(registry: DrafterRegistry) -> str:
    """Of the version that engines run; "" without one."""
    current = registry.state(SHARED_GROUP).current
    return registry.version(SHARED_GROUP, current).folder if current else ""


def figures(marks: Sequence[Mark], frozen: Speed, learned: Speed) -> dict[str, float]:
    """Flat names to numbers."""
    ratio, low, high = times_as_fast(learned, frozen)
    found: dict[str, float] = {
        "speed.frozen": frozen.tokens_per_second,
        "speed.learned": learned.tokens_per_second,
        "speed.ratio": ratio,
        "speed.ratio.low": low,
        "speed.ratio.high": high,
        "speed.frozen_tokens_per_round": frozen.tokens_per_round,
        "speed.learned_tokens_per_round": learned.tokens_per_round,
        "speed.identical": float(frozen.digest == learned.digest),
    }
    for number, mark in enumerate(marks):
        where = f"mark-{number:02d}"
        found |= {
            f"{where}.served": mark.served,
            f"{where}.seconds": mark.seconds,
            f"{where}.version": mark.version,
        }
        for kind, its in (("learned", mark.learned), ("frozen", mark.frozen)):
            for name, it in its.items():
                found[f"{where}.{name}.{kind}.agreement"] = it.agreement
                found[f"{where}.{name}.{kind}.accepted_length"] = it.accepted_length
    return found
