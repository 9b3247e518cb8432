"""What uvicorn knows of a client and ASGI has no cheap words for.

ASGI tells that a client has left to whoever waits for it, so that watching takes a task a request;
and it writes only from within a task, so that each piece of a stream that comes takes a turn of the
loop. Here a callback is called, and pieces are written at once. Requests that come from any other
server are served without (`Exchange` knows both ways).
"""

from __future__ import annotations

from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from paceline.middleware.exchange import CLIENT_STATE


class ClientProtocol(HttpToolsProtocol):
    """uvicorn's side of a connection; each request's state has its `ClientConnection`."""

    on_left: Callable[[], None] | None = None
    """Called once, when the connection is closed; of the request that is answered now."""

    def on_headers_complete(self) -> None:
        """Of the parser: a request begins."""
        super().on_headers_complete()
        self.scope["state"][CLIENT_STATE] = ClientConnection(self, self.cycle)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        on_left, self.on_left = self.on_left, None
        if on_left is not None:
            on_left()


class ClientConnection:
    """See `paceline.middleware.exchange.Client`."""

    __slots__ = ("_cycle", "_on_left", "_protocol")

    def __init__(self, protocol: ClientProtocol, cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._cycle = cycle
        self._on_left: Callable[[], None] | None = None

    def watch(self, on_left: Callable[[], None]) -> None:
        """See `Client.watch`."""
        protocol = self._protocol
        if protocol.transport.is_closing():
            on_left()
            return
        self._on_left = protocol.on_left = on_left
        # it is not read while a long body waits to be taken, and would not be seen to leave
        protocol.flow.resume_reading()

    def unwatch(self) -> None:
        """See `Client.unwatch`."""
        if self._protocol.on_left is self._on_left:  # else the next request's, sent ahead
            self._protocol.on_left = None

    @property
    def takes_now(self) -> bool:
        """See `Client.takes_now`."""
        cycle = self._cycle
        return bool(cycle.chunked_encoding) and not cycle.flow.write_paused

    def write(self, piece: bytes) -> None:
        """See `Client.write`."""
        if not self._cycle.disconnected:
            self._cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
