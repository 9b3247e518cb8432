"""What `paceline bench proxy` measures in each turn: a section is a question asked of one way."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from statistics import median
from typing import Final

from paceline.benchmarks.cpu_time import settled_cpu_seconds
from paceline.benchmarks.plain_client import chat_request, post
from paceline.benchmarks.proxy.asking import Line, line
from paceline.benchmarks.proxy.engine import LEFT_PATH
from paceline.benchmarks.proxy.ways import Way
from paceline.errors import PacelineError

SMALL_BYTES: Final = 1024
LARGE_BYTES: Final = 250_000
TURN_LINES: Final = 40
EVENT_MS: Final = 1
TICK_MS: Final = 25
"""About what a step of an engine takes that serves as many."""
LEFT_SECONDS: Final = 10.0
POLL_SECONDS: Final = 0.002
_WRITTEN: Final = re.compile(rb'"content"\s*:\s*" (\d{6,})"')


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnSettings:
    """How much is asked in each turn and way.

    Attributes:
        requests: whole replies, one after the other.
        concurrent_requests: whole replies at `concurrency`, for the rate.
        concurrency: connections at a time.
        large_requests: whole replies to bodies of 250 KB, at `concurrency`.
        streams: streams read one after the other.
        chunks: events of each of these.
        crowd: streams read at once, which all get an event at each tick.
        crowd_chunks: events of each of these.
        aborts: clients that leave, as many from whole replies as from streams.
    """

    requests: int = 400
    concurrent_requests: int = 4000
    concurrency: int = 16
    large_requests: int = 1000
    streams: int = 10
    chunks: int = 200
    crowd: int = 64
    crowd_chunks: int = 100
    aborts: int = 10


Figures = dict[str, float]
Section = Callable[[TurnSettings, Way], Awaitable[Figures]]


async def requests(settings: TurnSettings, way: Way) -> Figures:
    """Whole replies of a kilobyte: how long each takes alone, and how many there are a second."""
    asked = whole_request(way)
    async with line(way.port) as opened:
        seconds = [await _seconds(opened, asked) for _ in range(way.share(settings.requests))]
    figures = {"p50_ms": 1e3 * median(seconds)}
    return figures | await _rate(way, asked, settings.concurrent_requests, settings.concurrency)


async def large(settings: TurnSettings, way: Way) -> Figures:
    """The same for bodies of 250 KB."""
    asked = conversation_request(way)
    found = await _rate(way, asked, settings.large_requests, settings.concurrency)
    return {f"large_{name}": value for name, value in found.items()}


async def streams(settings: TurnSettings, way: Way) -> Figures:
    """Streams one after the other, an event at a time: CPU time of each event.

    That of the request around them is taken off, as streams of one event show it.
    """
    if way.pid is None:
        return {}
    count, used = max(way.share(settings.streams), 2), []
    for chunks in (1, settings.chunks + 1):
        asked = stream_request(way, chunks, milliseconds=EVENT_MS)
        async with line(way.port) as opened:
            await opened.ask(asked)  # the first one counts for nothing
            before = await settled_cpu_seconds(way.pid)
            for _ in range(count):
                await opened.ask(asked)
        used.append(await settled_cpu_seconds(way.pid) - before)
    return {"cpu_us_per_chunk": 1e6 * (used[1] - used[0]) / count / settings.chunks}


async def crowd(settings: TurnSettings, way: Way) -> Figures:
    """Many streams whose events all come at the same moments: how late each is."""
    asked = stream_request(way, settings.crowd_chunks, milliseconds=TICK_MS, in_step=True)
    delays: list[float] = []

    def take(data: bytes) -> None:
        now = time.monotonic_ns()
        delays.extend(1e-6 * (now - int(written)) for written in _WRITTEN.findall(data))

    async def listen(opened: Line) -> None:
        await opened.ask(asked, take)

    before = await settled_cpu_seconds(way.pid)
    await _all(way.port, settings.crowd, listen)
    used = await settled_cpu_seconds(way.pid) - before
    wanted = settings.crowd * settings.crowd_chunks
    if len(delays) != wanted:
        raise PacelineError(f"{way.name}: {len(delays)} events of {wanted} came, each in one piece")
    delays.sort()
    figures = {"crowd_p50_ms": quantile(delays, 0.5), "crowd_p99_ms": quantile(delays, 0.99)}
    if way.pid is not None:
        figures["crowd_cpu_us_per_chunk"] = 1e6 * used / wanted
    return figures


async def aborts(settings: TurnSettings, way: Way) -> Figures:
    """Clients that leave before their answer: when the engine sees it.

    The worst of some, for whole replies and for streams in their middle; not a number where the
    engine is not told. The bare way passes no client's leaving on.
    """
    if way.name == "bare":
        return {}
    whole = whole_request(way, opening="[[hold]]")
    asked = {"abort_ms": whole, "abort_stream_ms": stream_request(way, 1000, milliseconds=20)}
    figures: Figures = {}
    for name, request in asked.items():
        figures[name] = 0.0
        for _ in range(settings.aborts):
            figures[name] = max(await _abort(way, request), figures[name])
            if math.isnan(figures[name]):
                break
    return figures


SECTIONS: Final[Mapping[str, Section]] = {
    "requests": requests,
    "streams": streams,
    "large": large,
    "crowd": crowd,
    "aborts": aborts,
}


def stream_request(
    way: Way, count: int, *, milliseconds: int, in_step: bool = False, session: str = ""
) -> bytes:
    """A request for a stream of so many events, each so long after the one before."""
    pace = "ticks" if in_step else "each"
    return chat_request(
        way.port,
        num_bytes=SMALL_BYTES,
        stream=True,
        opening=f"[[{count} events, {pace} {milliseconds} ms]]",
        headers=_headers(way, session),
    )


def whole_request(way: Way, *, opening: str = "", session: str = "") -> bytes:
    """A request for a whole reply."""
    return chat_request(
        way.port, num_bytes=SMALL_BYTES, opening=opening, headers=_headers(way, session)
    )


def conversation_request(way: Way) -> bytes:
    """A long conversation of an agent's: what tools said, and what it said to that."""
    said = 'def read(path):\n    return open(path).read()  # "as it is"\n' * TURN_LINES
    roles = ["user", "assistant"] * (LARGE_BYTES // 2 // len(json.dumps(said)))
    talk = [{"role": role, "content": said} for role in roles]
    opening = {"role": "system", "content": "You are a careful engineer. " * 150}
    body = json.dumps({"model": "m", "messages": [opening, *talk]}).encode()
    return post(way.port, body, way.headers)


def _headers(way: Way, session: str) -> Mapping[str, str]:
    return {**way.headers, "x-session-id": session} if session else way.headers


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value of sorted ones below which that share of them lies."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


async def _rate(way: Way, asked: bytes, count: int, concurrency: int) -> Figures:
    """Whole replies over several connections: how many a second, and the CPU time of each."""
    each = max(way.share(count) // concurrency, 1)

    async def ask(opened: Line) -> None:
        for _ in range(each):
            await opened.ask(asked)

    before = await settled_cpu_seconds(way.pid)
    seconds = await _all(way.port, concurrency, ask)
    used = await settled_cpu_seconds(way.pid) - before
    total = each * concurrency
    figures = {"requests_per_second": total / seconds}
    if way.pid is not None:
        figures["cpu_ms_per_request"] = 1e3 * used / total
    return figures


async def _all(port: int, count: int, use: Callable[[Line], Awaitable[None]]) -> float:
    """Use so many connections at once, all of them open before; seconds that it took."""
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(line(port)) for _ in range(count)]
        started = time.perf_counter()
        await asyncio.gather(*(use(each) for each in opened))
        return time.perf_counter() - started


async def _seconds(opened: Line, asked: bytes) -> float:
    started = time.perf_counter()
    await opened.ask(asked)
    return time.perf_counter() - started


async def _abort(way: Way, request: bytes) -> float:
    """Milliseconds from a client's leaving to the engine's seeing it; NaN if it does not.

    Raises:
        PacelineError: the request does not reach the engine.
    """
    before = await _left(way)
    async with line(way.port) as leaving:
        leaving.send(request)
        if await _until(way, "num_come", before["num_come"] + 1) is None:
            raise PacelineError(f"{way.name}: a request has not reached the engine")
        left_ns = time.monotonic_ns()
    after = await _until(way, "num_left", before["num_left"] + 1)
    return math.nan if after is None else 1e-6 * (after["last_ns"] - left_ns)


async def _until(way: Way, name: str, value: int) -> dict[str, int] | None:
    """What the engine tells once a count is so high; None if it does not become so."""
    deadline = time.monotonic() + LEFT_SECONDS
    while (told := await _left(way))[name] < value:
        if time.monotonic() > deadline:
            return None
        await asyncio.sleep(POLL_SECONDS)
    return told


async def _left(way: Way) -> dict[str, int]:
    parts: list[bytes] = []
    async with line(way.engine_port) as opened:
        await opened.ask(b"GET %b HTTP/1.1\r\nhost: engine\r\n\r\n" % LEFT_PATH, parts.append)
    told: dict[str, int] = json.loads(b"".join(parts))
    return told


def named(names: Iterable[str]) -> dict[str, Section]:
    """Sections by name, in the order in which they are measured."""
    wanted = set(names)
    return {name: section for name, section in SECTIONS.items() if name in wanted}
