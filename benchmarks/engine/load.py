"""Sending requests as agents do, and checking every reply against the recorded one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import zip_longest
from typing import Final, Protocol

from paceline.benchmarks.engine.records import (
    RequestTiming,
    TraceForcingError,
    Unit,
    WorkRequest,
)
from paceline.benchmarks.loops import has_loop

REQUEST_SECONDS: Final = 600.0
"""Longest wait for one reply."""

Clock = Callable[[], float]


class Server(Protocol):
    """An engine that can be told what to say."""

    def generate(self, request: WorkRequest) -> AsyncIterator[Sequence[int]]:
        """The reply's tokens, piece by piece as they come."""


class LoadLoop:
    """Sends a unit's requests; the turns of an episode always follow one another.

    Args:
        server: what answers.
        clock: monotonic seconds.
        on_done: called when a request is done.
        max_in_flight: most requests sent and not answered.
    """

    def __init__(
        self,
        server: Server,
        clock: Clock,
        *,
        on_done: Callable[[], None] = lambda: None,
        max_in_flight: int = 256,
    ) -> None:
        self._server = server
        self._clock = clock
        self._on_done = on_done
        self._room = asyncio.Semaphore(max_in_flight)

    async def run(self, unit: Unit) -> list[RequestTiming]:
        """Send all requests of `unit`; the timings by episode, then turn.

        Raises:
            TraceForcingError: a reply was not the recorded one.
        """
        if unit.arrival_seconds:
            by_episode = await self._run_open(unit)
        else:
            by_episode = await self._run_closed(unit)
        return [timing for timings in by_episode for timing in timings]

    async def _run_closed(self, unit: Unit) -> list[list[RequestTiming]]:
        """As many episodes at once as the load says, one after the other in each place."""
        waiting = deque(enumerate(unit.episodes))
        results: list[list[RequestTiming]] = [[] for _ in unit.episodes]

        async def place() -> None:
            while waiting:
                index, requests = waiting.popleft()
                for request in requests:
                    results[index].append(await self._ask(request, self._clock()))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(unit.load.concurrency):
                tasks.create_task(place())
        return results

    async def _run_open(self, unit: Unit) -> list[list[RequestTiming]]:
        """Each request at its time of arrival, or when the reply before it has come."""
        started = self._clock()
        due = dict(zip(in_order_of_arrival(unit.episodes), unit.arrival_seconds, strict=True))

        async def episode(index: int, requests: Sequence[WorkRequest]) -> list[RequestTiming]:
            timings: list[RequestTiming] = []
            for turn, request in enumerate(requests):
                at = started + due[index, turn]
                await asyncio.sleep(max(0.0, at - self._clock()))
                ready = timings[-1].chunk_times[-1] if timings else started
                timings.append(await self._ask(request, max(at, ready)))
            return timings

        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(episode(i, r)) for i, r in enumerate(unit.episodes)]
        return [task.result() for task in running]

    async def _ask(self, request: WorkRequest, due: float) -> RequestTiming:
        """One request; waiting for room counts as waiting for the reply."""
        times: list[float] = []
        sizes: list[int] = []
        said: list[int] = []
        async with self._room, asyncio.timeout(REQUEST_SECONDS):
            async for piece in self._server.generate(request):
                if piece:
                    times.append(self._clock())
                    sizes.append(len(piece))
                    said.extend(piece)
        check_reply(request, said)
        self._on_done()
        return RequestTiming(
            episode_id=request.episode_id,
            turn=request.turn,
            num_prompt=len(request.prompt_ids),
            loops=has_loop(request.output_ids),
            due=due,
            chunk_times=tuple(times),
            chunk_tokens=tuple(sizes),
        )


def in_order_of_arrival(episodes: Sequence[Sequence[WorkRequest]]) -> list[tuple[int, int]]:
    """(episode, turn) of all requests: the first turn of each episode, then the second ones."""
    turns = zip_longest(*([(i, t) for t in range(len(r))] for i, r in enumerate(episodes)))
    return [place for turn in turns for place in turn if place is not None]


def check_reply(request: WorkRequest, said: Sequence[int]) -> None:
    """Raise `TraceForcingError` unless `said` is the recorded reply, token for token."""
    recorded = request.output_ids
    if tuple(said) == recorded:
        return
    first = next(
        (i for i, (a, b) in enumerate(zip(said, recorded, strict=False)) if a != b),
        min(len(said), len(recorded)),
    )
    raise TraceForcingError(
        f"request {request.request_id!r} got another reply than the recorded one, from token "
        f"{first} on ({len(said)} tokens instead of {len(recorded)}): the engine's figures would "
        "not be those of the trace"
    )
