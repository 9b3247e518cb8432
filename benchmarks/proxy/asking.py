"""The client of `paceline bench proxy`: so little of one that little is measured of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import httptools

from paceline.errors import ConfigError

OK: Final = 200

Take = Callable[[bytes], None]


class Line(asyncio.Protocol):
    """A connection on which one request is asked after the other."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._take: Take | None = None
        self._answered: asyncio.Future[None] | None = None

    async def ask(self, request: bytes, take: Take | None = None) -> None:
        """Send a request; returns when its answer is whole.

        Args:
            request: as it goes over the wire.
            take: is handed each part of the answer's body as it comes.

        Raises:
            ConfigError: it is no success.
            ConnectionError: it breaks off.
        """
        self._take = take
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._answered

    def send(self, request: bytes) -> None:
        """Send a request whose answer nobody waits for."""
        self._transport.write(request)

    def leave(self) -> None:
        """Close it at once."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._end(ConnectionError(f"an answer broke off: {exc or 'the connection was closed'}"))

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._parser.feed_data(data)

    def on_headers_complete(self) -> None:
        """Of the parser."""
        status = self._parser.get_status_code()
        if status != OK:
            self._end(ConfigError(f"a server of the benchmark answers {status}; is a port taken?"))

    def on_body(self, data: bytes) -> None:
        """Of the parser."""
        if self._take is not None:
            self._take(data)

    def on_message_complete(self) -> None:
        """Of the parser."""
        self._end(None)

    def _end(self, error: Exception | None) -> None:
        answered, self._answered = self._answered, None
        if answered is None or answered.done():
            return
        if error is None:
            answered.set_result(None)
        else:
            answered.set_exception(error)


@asynccontextmanager
async def line(port: int) -> AsyncIterator[Line]:
    """A connection to a loopback port, closed at the end."""
    loop = asyncio.get_running_loop()
    _, opened = await loop.create_connection(Line, "127.0.0.1", port)
    try:
        yield opened
    finally:
        opened.leave()
