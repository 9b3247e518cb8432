"""Limits counted in Redis, shared by all proxies that use it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from typing import Any, Final

from redis.exceptions import NoScriptError

from paceline.caches.journal_client import UNREACHABLE, Client, RedisAddress
from paceline.caches.keys import LimitKeys
from paceline.middleware.limit_scripts import ADMIT, ADOPT, BOOK
from paceline.middleware.limit_store import Ask, Booking, BoundState, Decision
from paceline.policies.limits import WINDOW_MS, LimitsPolicy, WindowState

LEASE_MS: Final = 15_000
LOST_SECONDS: Final = 2.0
BATCH_CALLS: Final = 256
VALUES_PER_BOUND: Final = 8


@dataclass(slots=True)
class _Call:
    script: str
    keys: list[str]
    arguments: list[Any]
    answer: asyncio.Future[list[int]]


class RedisLimits:
    """Counts in Redis, in one script a decision.

    Calls that come while one is under way go together in the next round trip, over one connection:
    they arrive in the order of the calls.

    Args:
        address: of the Redis.
        window_ms: length of a minute.
        lease_ms: time after which the place of a request is free that nobody speaks for any more.
        lost_seconds: a round trip that takes longer has failed; a call lasts at most two.
        now_ms: a clock to decide by instead of Redis' own.
    """

    def __init__(
        self,
        address: RedisAddress,
        *,
        window_ms: int = WINDOW_MS,
        lease_ms: int = LEASE_MS,
        lost_seconds: float = LOST_SECONDS,
        now_ms: Callable[[], int] | None = None,
    ) -> None:
        self._address = address
        self._window_ms = window_ms
        self._lease_ms = lease_ms
        self._lost_seconds = lost_seconds
        self._is_answering = False
        self._now_ms = now_ms
        self._client: Client | None = None
        self._waiting: list[_Call] = []
        self._sender: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Make sure that Redis answers: hear what is under way, connect anew if that fails.

        Raises:
            RedisError, RedisClusterException, OSError, TimeoutError: it does not.
        """
        if self._sender is not None and not self._sender.done():
            await asyncio.wait({self._sender})
        if self._client is not None and self._is_answering:
            return
        await self._disconnect()
        async with asyncio.timeout(2 * self._lost_seconds):
            self._client = await self._address.connect_async(socket_seconds=self._lost_seconds)

    async def close(self) -> None:
        """Fail what is under way, and disconnect."""
        if self._sender is not None:
            self._sender.cancel()
            with suppress(asyncio.CancelledError):
                await self._sender
        self._fail(self._waiting, ConnectionError("the proxy stops"))
        await self._disconnect()

    async def admit(self, ask: Ask) -> Decision:
        """Decide, and count the request if it is admitted; one round trip.

        Raises:
            RedisError, RedisClusterException, OSError, TimeoutError: Redis did not answer. It may
                have counted.
        """
        admitted, *values = await self._call(ADMIT, *self._asked(ask))
        states = (
            _state(ask.bounds[i].limits, values[VALUES_PER_BOUND * i : VALUES_PER_BOUND * (i + 1)])
            for i in range(len(ask.bounds))
        )
        return Decision(admitted == 1, tuple(states))

    async def adopt(self, ask: Ask) -> tuple[int, ...]:
        """Count a request that was let in elsewhere; returns the places of its tokens.

        One round trip. Raises as `admit`.
        """
        return tuple(await self._call(ADOPT, *self._asked(ask)))

    def _asked(self, ask: Ask) -> tuple[list[str], list[Any]]:
        """Keys and arguments of a script about a request."""
        keys = LimitKeys(ask.tenant)
        names = [
            name
            for bound in ask.bounds
            for name in (
                keys.requests(bound.workload),
                keys.tokens(bound.workload),
                keys.places(bound.workload),
            )
        ]
        arguments: list[Any] = [*self._head(ask.request_id), ask.num_tokens]
        for bound in ask.bounds:
            limits = bound.limits
            arguments += (
                limits.requests_per_minute or 0,
                limits.tokens_per_minute or 0,
                limits.concurrency or 0,
            )
        return names, arguments

    async def book(self, booking: Booking) -> None:
        """Count what is known now; one round trip. Raises as `admit`."""
        ask, keys = booking.ask, LimitKeys(booking.ask.tenant)
        names = [
            name
            for bound in ask.bounds
            for name in (keys.tokens(bound.workload), keys.places(bound.workload))
        ]
        arguments: list[Any] = [*self._head(ask.request_id), booking.num_tokens, int(booking.ended)]
        for bound, place in zip(ask.bounds, booking.places, strict=True):
            limits = bound.limits
            arguments += (limits.tokens_per_minute or 0, limits.concurrency or 0, place)
        await self._call(BOOK, names, arguments)

    def _head(self, request_id: str) -> list[Any]:
        now = "" if self._now_ms is None else self._now_ms()
        return [now, self._window_ms, self._lease_ms, request_id]

    async def _call(self, script: str, keys: list[str], arguments: list[Any]) -> list[int]:
        call = _Call(script, keys, arguments, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())
        return await call.answer

    async def _send(self) -> None:
        """Send what waits, batch by batch; if Redis does not answer, nobody waits any longer."""
        while self._waiting:
            batch, self._waiting = self._waiting[:BATCH_CALLS], self._waiting[BATCH_CALLS:]
            try:
                async with asyncio.timeout(self._lost_seconds):
                    answers = await self._round_trip(batch)
                self._is_answering = True
            except (*UNREACHABLE, TimeoutError) as error:
                self._is_answering = False
                self._fail(batch, error)
                self._fail(self._waiting, error)
                self._waiting.clear()
                return
            except asyncio.CancelledError:
                self._fail(batch, ConnectionError("the proxy stops"))
                raise
            for call, answer in zip(batch, answers, strict=True):
                if call.answer.done():
                    continue  # its request has gone
                if isinstance(answer, Exception):
                    call.answer.set_exception(answer)
                else:
                    call.answer.set_result(answer if isinstance(answer, list) else [answer])

    async def _round_trip(self, batch: Sequence[_Call]) -> list[Any]:
        answers = await self._evaluate(batch, by_digest=True)
        unknown = [i for i, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            again = await self._evaluate([batch[i] for i in unknown], by_digest=False)
            for i, answer in zip(unknown, again, strict=True):
                answers[i] = answer
        return answers

    async def _evaluate(self, batch: Sequence[_Call], *, by_digest: bool) -> list[Any]:
        """An answer or an exception for each call."""
        if self._client is None:
            raise ConnectionError("Redis is not connected")
        pipeline = self._client.pipeline(transaction=False)
        for call in batch:
            # by name: a cluster's pipeline refuses the method, as scripts may reach many slots
            name, script = ("EVALSHA", _digest(call.script)) if by_digest else ("EVAL", call.script)
            pipeline.execute_command(name, script, len(call.keys), *call.keys, *call.arguments)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers

    @staticmethod
    def _fail(calls: Sequence[_Call], error: BaseException) -> None:
        for call in calls:
            if not call.answer.done():
                call.answer.set_exception(error)

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with suppress(*UNREACHABLE):
                await client.aclose()


def _state(limits: LimitsPolicy, values: Sequence[int]) -> BoundState:
    *windows, place, num_active = values
    return BoundState(
        _window_state(limits.requests_per_minute, windows[:3]),
        _window_state(limits.tokens_per_minute, windows[3:]),
        place,
        num_active,
    )


def _window_state(limit: int | None, values: Sequence[int]) -> WindowState | None:
    if limit is None:
        return None
    remaining, reset_ms, wait_ms = values
    return WindowState(limit, remaining, reset_ms, wait_ms)


@cache
def _digest(script: str) -> str:
    return sha1(script.encode(), usedforsecurity=False).hexdigest()
