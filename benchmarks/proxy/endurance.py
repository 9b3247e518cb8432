"""What `paceline bench proxy` measures once: many slow streams at a time, and many requests."""

from __future__ import annotations

import asyncio
import resource
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from paceline.benchmarks.cpu_time import resident_megabytes, settled_cpu_seconds
from paceline.benchmarks.proxy.asking import line
from paceline.benchmarks.proxy.engine import DONE
from paceline.benchmarks.proxy.sections import Figures, stream_request, whole_request
from paceline.benchmarks.proxy.ways import Way
from paceline.errors import ConfigError

QUARTERS: Final = 4
STREAM_EVERY: Final = 10
"""Among many requests, each tenth is a stream."""
STREAM_EVENTS: Final = 5
CONNECTIONS: Final = 16
FILES_BESIDE: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class EnduranceSettings:
    """What is asked once of a proxy of ours.

    Attributes:
        slow_streams: streams at a time, 0 for none.
        slow_chunks: events of each.
        slow_milliseconds: between two of them.
        requests: requests after which memory is looked at, at each quarter; 0 for none.
    """

    slow_streams: int = 0
    slow_chunks: int = 10
    slow_milliseconds: int = 3000
    requests: int = 0


async def slow_streams(settings: EnduranceSettings, way: Way) -> Figures:
    """Streams at a time that rarely say anything: which of them end whole, and what they take."""
    assert way.pid is not None
    count = settings.slow_streams
    asked = stream_request(way, settings.slow_chunks, milliseconds=settings.slow_milliseconds)
    memory, cpu = resident_megabytes(way.pid), await settled_cpu_seconds(way.pid)
    ends = [b""] * count
    started = time.monotonic()

    async def listen(number: int) -> None:
        def take(data: bytes) -> None:
            ends[number] = (ends[number] + data)[-len(DONE) :]

        async with line(way.port) as opened:
            await opened.ask(asked, take)

    tasks = [asyncio.create_task(listen(number)) for number in range(count)]
    await asyncio.sleep(settings.slow_chunks * settings.slow_milliseconds / 2e3)
    half = resident_megabytes(way.pid)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    seconds = time.monotonic() - started
    used = await settled_cpu_seconds(way.pid) - cpu
    whole = sum(end == DONE and result is None for end, result in zip(ends, results, strict=True))
    return {
        "slow_streams_whole": whole,
        "slow_memory_mb": half - memory,
        "slow_memory_kb_per_stream": 1024 * (half - memory) / count,
        "slow_cpu_percent": 100 * used / seconds,
        "slow_seconds": seconds,
    }


async def memory(settings: EnduranceSettings, way: Way) -> Figures:
    """Memory after each quarter of many requests, each of a session of its own."""
    assert way.pid is not None
    each = settings.requests // QUARTERS // CONNECTIONS
    figures: Figures = {"memory_mb_0": resident_megabytes(way.pid)}
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(line(way.port)) for _ in range(CONNECTIONS)]

        async def ask(place: int, quarter: int) -> None:
            for number in range(each):
                session = f"{quarter}-{place}-{number}"
                if number % STREAM_EVERY:
                    asked = whole_request(way, session=session)
                else:
                    asked = stream_request(way, STREAM_EVENTS, milliseconds=1, session=session)
                await opened[place].ask(asked)

        for quarter in range(QUARTERS):
            await asyncio.gather(*(ask(place, quarter) for place in range(CONNECTIONS)))
            figures[f"memory_mb_{quarter + 1}"] = resident_megabytes(way.pid)
    figures["memory_requests"] = each * CONNECTIONS * QUARTERS
    return figures


def allow_files(count: int) -> None:
    """Have this process, and those that it starts, open so many files beside the usual ones.

    Raises:
        ConfigError: the machine does not let it.
    """
    wanted = count + FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError, OverflowError) as error:
        raise ConfigError(
            f"{count} connections need {wanted} open files, and the limit is {hard} ({error}); "
            "raise it (ulimit -Hn) or ask for fewer streams"
        ) from error
