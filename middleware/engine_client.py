"""An HTTP/1.1 client for engines: what the proxy asks of one, and nothing beside it.

httptools parses, as it does for uvicorn on the other side. With aiohttp's client in its place the
proxy took twice as long for a request, and 1.4 times as long for a stream's chunk (LOG.md).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Final

import httptools

from paceline.middleware.engine_request import Origin, request_head
from paceline.middleware.upstream import Headers, SilenceWatch, UpstreamError

KEEP_SECONDS: Final = 30.0
"""How long a connection is kept that nobody uses."""
MAX_HEAD_BYTES: Final = 256 * 1024
MAX_WAITING_BYTES: Final = 256 * 1024
"""More of an answer than this that nobody has taken, and the engine is read no further."""
UNUSED_SECONDS: Final = 1.0
"""Engines end connections that nobody has used for longer than this, and no others."""
CROSSING_SECONDS: Final = 1.0
"""One of these that ends so soon after a request was sent on it ended before that came."""
SUCCESS: Final = 200
"""Statuses below are informational: the answer is still to come."""


class Connections:
    """Connections to any number of engines, each kept for the next request.

    Args:
        connect_timeout_seconds: longest wait for a connection, its name and TLS included.
        unused_seconds: after which an engine may end a connection because nobody uses it.
    """

    def __init__(
        self, *, connect_timeout_seconds: float, unused_seconds: float = UNUSED_SECONDS
    ) -> None:
        self.unused_seconds = unused_seconds
        self._connect_timeout_seconds = connect_timeout_seconds
        self._open: set[_Connection] = set()
        self._idle: dict[Origin, list[_Connection]] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._all_closed: asyncio.Event | None = None
        self._tls: ssl.SSLContext | None = None

    async def take(self, origin: Origin, *, fresh: bool = False) -> _Connection:
        """A connection for one request: the one used last, or a new one.

        Args:
            origin: of the engine.
            fresh: whether it must be a new one.

        Raises:
            UpstreamError: none can be made.
        """
        idle = None if fresh else self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if not connection.is_closing:
                return connection
        return await self._connect(origin)

    def keep(self, connection: _Connection) -> None:
        """Keep one whose answer is whole. O(1)."""
        self._idle.setdefault(connection.origin, []).append(connection)
        if self._sweep is None:
            loop = asyncio.get_running_loop()
            self._sweep = loop.call_later(KEEP_SECONDS, self._close_unused)

    def opened(self, connection: _Connection) -> None:
        """It is there, and to be closed by us if nobody else does."""
        self._open.add(connection)

    def forget(self, connection: _Connection) -> None:
        """It is closed."""
        self._open.discard(connection)
        idle = self._idle.get(connection.origin)
        if idle is not None and connection in idle:
            idle.remove(connection)
        if self._all_closed is not None and not self._open:
            self._all_closed.set()

    async def close(self) -> None:
        """Close all, those with answers under way too."""
        if self._sweep is not None:
            self._sweep.cancel()
        if not self._open:
            return
        self._all_closed = asyncio.Event()
        for connection in list(self._open):
            connection.close()
        await self._all_closed.wait()

    def _close_unused(self) -> None:
        """Close what has not been used since the last look; look again while there is anything."""
        loop = asyncio.get_running_loop()
        before = loop.time() - KEEP_SECONDS
        for origin, idle in list(self._idle.items()):
            for connection in [each for each in idle if each.used_at <= before]:
                connection.close()
            self._idle[origin] = [each for each in idle if each.used_at > before]
            if not self._idle[origin]:
                del self._idle[origin]
        self._sweep = None
        if self._idle:
            self._sweep = loop.call_later(KEEP_SECONDS / 2, self._close_unused)

    async def _connect(self, origin: Origin) -> _Connection:
        loop = asyncio.get_running_loop()
        if origin.is_secure and self._tls is None:
            self._tls = await asyncio.to_thread(ssl.create_default_context)
        try:
            async with asyncio.timeout(self._connect_timeout_seconds):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self, origin),
                    origin.host,
                    origin.port,
                    ssl=self._tls if origin.is_secure else None,
                )
        except TimeoutError as error:
            reason = f"no connection within {self._connect_timeout_seconds:g} s"
            raise UpstreamError(reason, answered=False, connected=False) from error
        except OSError as error:
            reason = str(error) or type(error).__name__
            raise UpstreamError(reason, answered=False, connected=False) from error
        if connection.is_closing:
            raise UpstreamError("it closed the connection", answered=False)
        return connection


class _Connection(asyncio.Protocol):
    """One connection: a request at a time, and its answer."""

    def __init__(self, connections: Connections, origin: Origin) -> None:
        self.origin = origin
        self.used_at = 0.0
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._answer: _Answer | None = None
        self._num_head_bytes = 0
        self._is_whole = False
        self._is_kept = False
        self._is_paused = False
        self._is_aborted = False
        self._was_kept = False
        self._has_heard = False
        self._asked_at = 0.0
        self._is_crossed = False

    @property
    def is_crossed(self) -> bool:
        """Whether the engine seems to have ended it before it read the request."""
        return self._is_crossed

    @property
    def is_closing(self) -> bool:
        """Whether no request can be sent on it."""
        return self._transport.is_closing()

    def request(self, head: bytes, body: bytes | None, *, most_silent_seconds: float) -> _Answer:
        """Send a request; returns its answer, of which nothing is there yet."""
        answer = _Answer(self, most_silent_seconds)
        self._answer = answer
        self._num_head_bytes = 0
        self._is_whole = False
        self._has_heard = False
        self._asked_at = self._loop.time()
        self._transport.writelines((head,) if body is None else (head, body))
        return answer

    def pause(self) -> None:
        """Read no further."""
        if not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._is_paused and not self.is_closing:
            self._is_paused = False
            self._transport.resume_reading()

    def close(self) -> None:
        """Close it at once, whatever is under way."""
        self._is_aborted = True
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no subclass
        self._connections.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._connections.forget(self)
        answer, self._answer = self._answer, None
        if answer is not None:
            self._is_crossed = self._may_have_crossed()
            is_end = exc is None and not self._is_aborted
            answer.closed(str(exc or "") or "it closed the connection", is_end=is_end)

    def _may_have_crossed(self) -> bool:
        """Whether this end can be that of a connection that nobody had used for a while."""
        if not self._was_kept or self._has_heard or self._is_aborted:
            return False
        unused = self._asked_at - self.used_at
        waited = self._loop.time() - self._asked_at
        return unused >= self._connections.unused_seconds and waited < CROSSING_SECONDS

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        answer = self._answer
        if answer is None:  # nobody has asked
            self.close()
            return
        self._has_heard = True
        if not answer.status:
            self._num_head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._give_up("" if self._is_whole else f"its answer is no HTTP: {error}")
            return
        if not answer.status and self._num_head_bytes > MAX_HEAD_BYTES:
            self._give_up(f"its answer's head is longer than {MAX_HEAD_BYTES} bytes")
        elif self._is_whole:
            self._release(answer)
        else:
            answer.tell()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of the parser: one header; what follows a body is nobody's."""
        assert self._answer is not None
        if not self._answer.status:
            self._answer.fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Of the parser: all of them."""
        assert self._answer is not None
        status = self._parser.get_status_code()
        if status < SUCCESS:  # of an upgrade, which nobody asked for, the parser tells next
            self._answer.fields.clear()
        else:
            self._answer.status = status

    def on_body(self, data: bytes) -> None:
        """Of the parser: a part of the body."""
        assert self._answer is not None
        self._answer.push(data)

    def on_message_begin(self) -> None:
        """Of the parser: an answer.

        Raises:
            ValueError: there is one already; the connection cannot be used any more.
        """
        if self._is_whole:
            raise ValueError("there is more behind the answer")

    def on_message_complete(self) -> None:
        """Of the parser: the answer is whole, or was only an informational one."""
        assert self._answer is not None
        if self._answer.status:
            self._is_whole = True
            self._is_kept = self._parser.should_keep_alive()

    def _release(self, answer: _Answer) -> None:
        """The answer is whole; the next request may come."""
        self._answer = None
        self.resume()
        # an engine may answer before it has read everything
        if self._is_kept and not self.is_closing and not self._transport.get_write_buffer_size():
            self.used_at = self._loop.time()
            self._was_kept = True
            self._connections.keep(self)
        else:
            self.close()
        answer.end("")

    def _give_up(self, reason: str) -> None:
        """Read nothing more of it; without a reason, the answer is whole."""
        answer, self._answer = self._answer, None
        self.close()
        if answer is not None:
            answer.end(reason)


class _Answer:
    """See `UpstreamResponse`; what of it has come waits here until it is taken."""

    __slots__ = (
        "_connection",
        "_failure",
        "_is_over",
        "_num_bytes",
        "_parts",
        "_silence",
        "_take",
        "_waiter",
        "fields",
        "headers",
        "status",
    )

    def __init__(self, connection: _Connection, most_silent_seconds: float) -> None:
        self.status = 0
        self.fields: list[tuple[bytes, bytes]] = []
        self.headers: Headers = self.fields
        self._connection = connection
        self._silence = SilenceWatch(most_silent_seconds, self.abort)
        self._parts: list[bytes] = []
        self._num_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._take: Callable[[bytes], bool] | None = None
        self._is_over = False
        self._failure = ""

    def push(self, data: bytes) -> None:
        """A part of the body has come. O(1)."""
        self._parts.append(data)
        self._num_bytes += len(data)
        if self._num_bytes > MAX_WAITING_BYTES:
            self._connection.pause()

    def tell(self) -> None:
        """Pass on what has come, or wake who waits for it. O(1)."""
        self._silence.heard()
        waiter = self._waiter
        if waiter is None or waiter.done():  # who is not waiting looks again by itself
            return
        try:
            if self._take is not None and self._pass_on(self._take):
                return
        except Exception as error:  # noqa: BLE001  raised where the answer is waited for
            waiter.set_exception(error)
        else:
            waiter.set_result(None)
        self._waiter = None

    def _pass_on(self, take: Callable[[bytes], bool]) -> bool:
        """Whether what has come was taken at once."""
        if self._is_over or not self._parts:
            return False
        if not take(self._waiting()):
            return False
        self._taken()
        return True

    def pass_to(self, take: Callable[[bytes], bool]) -> None:
        """See `UpstreamResponse.pass_to`."""
        self._take = take

    def end(self, failure: str) -> None:
        """Nothing more comes: it is whole, or it failed. Later calls change nothing."""
        if self._is_over:
            return
        self._is_over = True
        self._failure = self._silence.reason or failure
        self._silence.stop()
        self.tell()

    def closed(self, failure: str, *, is_end: bool) -> None:
        """The connection is closed; by the other side in order, or not."""
        lengths = (b"content-length", b"transfer-encoding")
        has_length = any(name in lengths for name, _ in self.fields)
        is_whole = is_end and self.status and not has_length
        self.end("" if is_whole else failure)

    async def wait_for_head(self) -> None:
        """Wait until status and headers are there.

        Raises:
            UpstreamError: they do not come.
        """
        while not self.status and not self._is_over:
            self._waiter = waiter = asyncio.get_running_loop().create_future()
            await waiter
        if not self.status:
            raise UpstreamError(self._failure, answered=False)

    def _waiting(self) -> bytes:
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def _taken(self) -> None:
        self._parts.clear()
        self._num_bytes = 0
        if not self._is_over:
            self._connection.resume()

    async def chunks(self) -> AsyncIterator[bytes]:
        """See `UpstreamResponse.chunks`."""
        create_future = asyncio.get_running_loop().create_future
        while True:
            if self._parts:
                data = self._waiting()
                self._taken()
                yield data
            elif not self._is_over:
                self._waiter = waiter = create_future()
                await waiter
            elif self._failure:
                raise UpstreamError(self._failure, answered=True)
            else:
                return

    def abort(self) -> None:
        """See `UpstreamResponse.abort`."""
        self._silence.stop()
        if not self._is_over:
            self._connection.close()

    def give_up(self, reason: str, *, silent_seconds: float) -> bool:
        """See `UpstreamResponse.give_up`."""
        return self._silence.give_up(reason, silent_seconds)


class HttpUpstream:
    """An engine reached over HTTP/1.1.

    Args:
        connections: kept between requests; shared with other engines.
        url: base URL of the engine, without a path.
        api_key: key the engine wants, None for none.
        read_timeout_seconds: longest silence, before the answer's head and within its body.
    """

    def __init__(
        self,
        connections: Connections,
        url: str,
        api_key: str | None = None,
        *,
        read_timeout_seconds: float = 600.0,
    ) -> None:
        self._connections = connections
        self._origin = Origin(url)
        self._read_timeout_seconds = read_timeout_seconds
        self._credentials = self._origin.credentials
        if api_key is not None:
            self._credentials = {"authorization": f"Bearer {api_key}"}

    async def send(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None
    ) -> _Answer:
        """See `Upstream.send`; `path` may have a query.

        Engines end connections that nobody uses. Where that crosses a request, it is sent again on
        a new one, once.
        """
        head = request_head(self._origin, method, path, headers | self._credentials, body)
        connection = await self._connections.take(self._origin)
        try:
            return await self._ask(connection, head, body)
        except UpstreamError as error:
            if not connection.is_crossed:
                raise
            crossed = error
        try:
            connection = await self._connections.take(self._origin, fresh=True)
        except UpstreamError:
            # the request itself may have ended the engine: it is not to be taken for unsent
            raise crossed from None
        return await self._ask(connection, head, body)

    async def _ask(self, connection: _Connection, head: bytes, body: bytes | None) -> _Answer:
        answer = connection.request(head, body, most_silent_seconds=self._read_timeout_seconds)
        try:
            await answer.wait_for_head()
        except BaseException:
            answer.abort()
            raise
        return answer
