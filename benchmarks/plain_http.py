"""The least of an HTTP server that the far ends of benchmarks need: whole requests in, bytes out.

No library's server is as cheap, and what it costs would be taken for the proxy's.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine


class PlainHttp(asyncio.Protocol, ABC):
    """Hands each request on a connection to `answer`, one after the other."""

    def __init__(self) -> None:
        self.path = b""
        """Of the request that is answered."""
        self._buffer = bytearray()
        self._num_wanted = 0
        self._transport: asyncio.Transport
        self._streams: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody listens any more."""
        for stream in self._streams:
            stream.cancel()

    def data_received(self, data: bytes) -> None:
        """Answer as soon as a request is whole."""
        self._buffer += data
        if len(self._buffer) < self._num_wanted:
            return
        head, border, _ = self._buffer.partition(b"\r\n\r\n")
        if not border:
            return
        announced = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        begin = len(head) + len(border)
        self._num_wanted = begin + int(announced or 0)
        if len(self._buffer) < self._num_wanted:
            return
        body = bytes(self._buffer[begin : self._num_wanted])
        del self._buffer[: self._num_wanted]
        self._num_wanted = 0
        self.path = bytes(head.split(b" ", 2)[1])
        self.answer(body)

    @abstractmethod
    def answer(self, body: bytes) -> None:
        """Answer a request with that body, by `write_whole` or `begin_stream`."""

    @property
    def is_closing(self) -> bool:
        """Whether the client has left."""
        return self._transport.is_closing()

    def write_whole(self, body: bytes) -> None:
        """Write a whole answer, JSON."""
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )

    def begin_stream(self, events: Coroutine[None, None, None]) -> None:
        """Begin a stream, which `events` writes by `write_event`; it ends with them."""
        task = asyncio.ensure_future(self._stream(events))
        self._streams.add(task)
        task.add_done_callback(self._streams.discard)

    def write_event(self, data: bytes) -> None:
        """Write a part of a stream, a chunk of its own."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def _stream(self, events: Coroutine[None, None, None]) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        await events
        self._transport.write(b"0\r\n\r\n")


async def serve(make: Callable[[], PlainHttp], port: int) -> None:
    """Serve on a loopback port until cancelled."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(make, "127.0.0.1", port)
    async with server:
        await server.serve_forever()
