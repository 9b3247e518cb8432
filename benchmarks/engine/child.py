"""The process that holds one engine and measures its units.

Usage: ``python -m paceline.benchmarks.engine.child JOB_FILE``. Results and progress are files,
since an engine's own output may go anywhere.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from paceline.benchmarks.engine.load import LoadLoop, Server
from paceline.benchmarks.engine.records import (
    DRAFTED_BY_MODEL,
    EMBEDDED,
    Job,
    Step,
    Unit,
    UnitResult,
    WorkRequest,
    write_result,
)

WARM_UP_TOKENS = 8
EMBEDDED_BRANCHES = 4
"""Most branches of a node where the embedded engine drafts trees."""


class MeasuredServer(Server, Protocol):
    """A server that keeps its steps."""

    async def make_cold(self) -> None:
        """Forget what earlier units left."""

    async def take_steps(self) -> list[Step]:
        """Its steps since the last call."""

    def close(self) -> None:
        """Stop."""


async def measure(job: Job, on_done: Callable[[], None]) -> None:
    """Start the job's engine and measure its units, each into its file.

    Args:
        job: what to measure.
        on_done: called when a request is done.
    """
    server = _start(job)
    try:
        await _warm_up(server, job.units[0])
        for unit in job.units:
            write_result(await _measure_unit(job, server, unit, on_done), Path(unit.file))
    finally:
        server.close()


async def _measure_unit(
    job: Job, server: MeasuredServer, unit: Unit, on_done: Callable[[], None]
) -> UnitResult:
    await server.make_cold()
    loop = LoadLoop(
        server, time.perf_counter, on_done=on_done, max_in_flight=job.settings.max_in_flight
    )
    timings = await loop.run(unit)
    return UnitResult(
        variant=unit.variant,
        source=unit.source,
        load=unit.load,
        timings=tuple(timings),
        steps=tuple(await server.take_steps()),
    )


async def _warm_up(server: MeasuredServer, unit: Unit) -> None:
    """One short reply, so that the first request measured pays for no first time.

    It speaks for a tenant of its own: nothing of it is remembered for the units.
    """
    first = unit.episodes[0][0]
    repeated: Sequence[int] = first.output_ids[:WARM_UP_TOKENS] * 2
    request = WorkRequest(
        tenant="warm-up",
        session="",
        episode_id="",
        turn=0,
        prompt_ids=tuple(repeated),
        output_ids=tuple(repeated),
    )
    async for _ in server.generate(request):
        pass


def _start(job: Job) -> MeasuredServer:
    """The job's engine; the libraries of the other kind are not imported."""
    settings = job.settings
    if job.variant in EMBEDDED:
        from paceline.adapters.embedded.engine_settings import EngineSettings
        from paceline.adapters.embedded.target import Target
        from paceline.benchmarks.engine.embedded_server import EmbeddedServer, ForcedTarget

        target = ForcedTarget.load(Path(settings.model))
        assert isinstance(target, ForcedTarget)
        drafter = None
        if job.variant in DRAFTED_BY_MODEL:
            drafter = Target.load_drafter(Path(settings.drafter))
        branches = EMBEDDED_BRANCHES if job.variant.endswith("-tree") else 1
        return EmbeddedServer(
            target,
            speculate=job.variant != "embedded-off" and "drafter" not in job.variant,
            drafter=drafter,
            settings=EngineSettings(max_branches=branches),
        )
    from paceline.benchmarks.engine.vllm_server import VllmServer, longest_reply

    return VllmServer.start(settings, job.variant, longest_reply=longest_reply(job.units))


def main(job_file: Path) -> None:
    """Measure what `job_file` says."""
    job = msgspec.msgpack.decode(job_file.read_bytes(), type=Job)
    with Path(job.progress_file).open("ab", buffering=0) as progress:

        def on_done() -> None:
            progress.write(b".")

        asyncio.run(measure(job, on_done))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
