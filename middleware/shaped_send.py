"""An ASGI `send` that writes an answer on the ticks of its grid; see `paceline.middleware.shaping`.

One timer for each stream, of the event loop's clock. A tick is one write to the socket, which
uvloop makes at once and without Nagle's delay; the first has one with the answer's head before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Literal

from paceline.middleware.config import ShapingConfig
from paceline.middleware.exchange import Message, RawHeaders, Send
from paceline.middleware.metrics import ShapingMetrics
from paceline.middleware.request_body import BodyView
from paceline.middleware.shaping import (
    Grid,
    ShapingTotals,
    TickQueue,
    as_event,
    bucket_for,
    padded_json,
)

MAX_PENDING_BYTES: Final = 256 * 1024
"""More is not read from the engine until the client has taken some."""
HTTP_OK: Final = 200
KEEP_SHAPE: Final = (
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),
)
"""Asks those in between to neither compress nor collect what is sent."""

Shape = Literal["aggregate", "padded"]


class ShapedSend:
    """Takes an answer's ASGI messages and passes them on when their tick comes.

    A stream's messages return when they wait in bounded room, the last one when it has been sent. A
    whole answer waits for its tick. To be closed in any case.

    Args:
        send: the server's.
        shape: ``aggregate`` or ``padded``.
        config: interval, sizes, rounding.
        bytes_per_tick: size of a padded stream's ticks.
        on_close: is told once what the answer took.
    """

    def __init__(
        self,
        send: Send,
        shape: Shape,
        config: ShapingConfig,
        *,
        bytes_per_tick: int,
        on_close: Callable[[ShapingTotals], None] = lambda _totals: None,
    ) -> None:
        self._send = send
        self._shape = shape
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._grid = Grid(self._loop.time(), config.interval_ms / 1000)
        self._queue = TickQueue(
            bytes_per_tick=bytes_per_tick if shape == "padded" else None,
            round_ticks=config.round_ticks,
        )
        self._head: Message = {}
        self._whole: Message | None = None
        self._writer: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._has_room = asyncio.Event()
        self._totals = self._queue.totals
        self._on_close = on_close

    def promise(self, head: Message) -> None:
        """An engine will stream, with that head.

        A padded stream begins with the next tick, so that it does not tell when the first event
        came. Should the engine fail before it, another one's events may follow.
        """
        if self._shape == "padded" and head["status"] == HTTP_OK and self._writer is None:
            self._begin(head)

    async def send(self, message: Message) -> None:
        """Take one message of the answer, in ASGI's order."""
        if message["type"] == "http.response.start":
            if _is_whole(message["headers"]):
                self._whole = message
            elif self._writer is None:
                self._begin(message)
            return
        body: bytes = message.get("body", b"")
        if self._whole is not None and self._writer is None:
            await self._send_whole(self._whole, body)
        elif message.get("more_body", False):
            await self._push(body)
        else:
            await self._end(body if self._whole is None else as_event(body))

    async def close(self) -> None:
        """Stop writing, if it has not ended; once."""
        if self._writer is not None:
            self._writer.cancel()
            # how it failed, if it did, the one who waited for the end has been told
            await asyncio.gather(self._writer, return_exceptions=True)
        self._on_close(self._totals)

    def _begin(self, head: Message) -> None:
        self._head = {**head, "headers": _keeping_shape(head["headers"])}
        self._writer = asyncio.create_task(self._write_on_ticks())

    async def _push(self, data: bytes) -> None:
        self._queue.push(data, self._loop.time())
        self._news.set()
        assert self._writer is not None
        while self._queue.num_pending > MAX_PENDING_BYTES and not self._writer.done():
            self._has_room.clear()
            await self._has_room.wait()
        if self._writer.done():
            self._writer.result()  # before the stream's end it ends only by failing

    async def _end(self, data: bytes) -> None:
        self._queue.end(data, self._loop.time())
        self._news.set()
        assert self._writer is not None
        await self._writer

    async def _write_on_ticks(self) -> None:
        try:
            tick, is_last = 0, False
            while not is_last:
                if self._shape == "aggregate" and not self._queue.is_due:
                    self._news.clear()
                    await self._news.wait()
                tick = await self._next_tick(tick)
                is_last = await self._write(tick)
                self._has_room.set()
        finally:
            self._has_room.set()  # a failed writer keeps nobody waiting

    async def _next_tick(self, last: int, every: int = 1) -> int:
        """Wait for the next tick whose number is a multiple of `every`; returns its number."""
        tick = self._grid.next_tick(self._loop.time(), last)
        tick += -tick % every
        await asyncio.sleep(self._grid.time_of(tick) - self._loop.time())
        return tick

    async def _write(self, number: int) -> bool:
        """Write what a tick has; True if it was the last."""
        tick = self._queue.take(number, self._loop.time())
        if not tick.data and not tick.is_last:
            return False
        if self._head:
            await self._send(self._head)
            self._head = {}
        await self._send(
            {"type": "http.response.body", "body": tick.data, "more_body": not tick.is_last}
        )
        return tick.is_last

    async def _send_whole(self, head: Message, body: bytes) -> None:
        headers = head["headers"]
        if self._shape == "padded":
            if _is_json(headers):
                padded = padded_json(body, self._config.bytes_per_tick)
                self._totals.num_padding += len(padded) - len(body)
                body = padded
            headers = _keeping_shape([h for h in headers if h[0] != b"content-length"])
            headers.append((b"content-length", b"%d" % len(body)))
        await self._next_tick(0, self._config.round_ticks if self._shape == "padded" else 1)
        self._totals.num_ticks += 1
        await self._send({**head, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})


def shaper_of(
    tenant: str,
    shape: Shape,
    view: BodyView,
    config: ShapingConfig,
    metrics: ShapingMetrics,
) -> Callable[[Send], ShapedSend]:
    """What makes a server's `send` one that shapes the answer to a request, as its policy wants.

    The grid begins when it is called.
    """
    size = bucket_for(
        config.bytes_per_tick, num_choices=view.num_choices, num_logprobs=view.num_logprobs
    )

    def count(totals: ShapingTotals) -> None:
        metrics.add(tenant, shape, totals)

    return lambda send: ShapedSend(send, shape, config, bytes_per_tick=size, on_close=count)


def _is_whole(headers: RawHeaders) -> bool:
    return any(name == b"content-length" for name, _ in headers)


def _is_json(headers: RawHeaders) -> bool:
    return any(
        name == b"content-type" and value.startswith(b"application/json") for name, value in headers
    )


def _keeping_shape(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    replaced = {name for name, _ in KEEP_SHAPE}
    return [h for h in headers if h[0] not in replaced] + list(KEEP_SHAPE)
