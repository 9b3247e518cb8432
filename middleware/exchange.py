"""One request and its answer on the ASGI side.

Reading the body, sending, noticing that the client left.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any, Final, Protocol

from paceline.api_dialects import dialect_of
from paceline.api_errors import ApiError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
RawHeaders = Sequence[tuple[bytes, bytes]]

JSON: Final = (b"content-type", b"application/json")
CLIENT_STATE: Final = "paceline.client"
"""Of a scope's state: the request's `Client`, where the server is ours."""


class ClientGoneError(Exception):
    """The client left before its answer was complete."""


class Client(Protocol):
    """What a server tells of a request's client, and takes for it, without a task."""

    def watch(self, on_left: Callable[[], None]) -> None:
        """Have `on_left` called when the client leaves, now if it has; the body is read."""

    def unwatch(self) -> None:
        """Have nothing called any more."""

    @property
    def takes_now(self) -> bool:
        """Whether a stream has begun, and the client keeps up with it."""

    def write(self, piece: bytes) -> None:
        """Send a piece of a stream, not empty; only while `takes_now`."""


class ShapesAnswer(Protocol):
    """What stands between an answer and the server, and decides when which bytes leave."""

    def promise(self, head: Message) -> None:
        """An engine will stream, with that head; nothing of it has come yet."""

    async def send(self, message: Message) -> None:
        """Take one message of the answer."""

    async def close(self) -> None:
        """Stop writing. Harmless after the end."""


class Watches(Protocol):
    """What looks on while a request is answered."""

    def asked(self) -> None:
        """An engine is asked; comes again for each further one."""

    def wrote(self, piece: bytes) -> None:
        """A piece of a stream has been handed to the server."""

    def answered(self, body: bytes) -> None:
        """An engine has answered, not as a stream."""

    def finish(self) -> None:
        """The request has ended, one way or another; comes once."""


class Exchange:
    """One HTTP request as the server hands it to us.

    Args:
        scope: its ASGI scope.
        receive: gives its body, then waits for the client to leave.
        send: takes the answer.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope.get("query_string", b"")
        self.dialect = dialect_of(self.path)
        self.headers: dict[str, str] = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        self.client_host: str = (scope.get("client") or ("",))[0]
        self.status = 0
        self.request_id = ""
        self.read_at: float | None = None
        """When all of the request was there, by `time.perf_counter`."""
        self.own_headers: RawHeaders = ()
        """What the answer's head says beside what the engine says."""
        self.watch: Watches | None = None
        self.engine = ""
        """Name of the engine that was asked last."""
        self.trace_headers: Mapping[str, str] = {}
        """What engines are told of the trace that the request is part of."""
        self._receive = receive
        self._send = send
        self._shape: ShapesAnswer | None = None
        self._client: Client | None = scope.get("state", {}).get(CLIENT_STATE)

    @property
    def started(self) -> bool:
        """Whether the answer's head has been sent."""
        return self.status != 0

    async def read_body(self, *, max_bytes: int) -> bytes:
        """The whole body.

        Raises:
            ApiError: 413, it is longer than `max_bytes`.
            ClientGoneError: the client left before its end.
        """
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            part = message.get("body", b"")
            size += len(part)
            if size > max_bytes:
                raise ApiError(
                    413,
                    f"the request body is longer than {max_bytes} bytes; shorten the conversation "
                    "or raise "
                    "max_body_bytes in the proxy's configuration",
                    code="request_too_large",
                )
            parts.append(part)
            if not message.get("more_body", False):
                self.read_at = time.perf_counter()
                return b"".join(parts)

    def watch_client(self, on_left: Callable[[], None]) -> Callable[[], object]:
        """Have `on_left` called when the client leaves; only after the body was read.

        Returns what ends the watch.
        """
        if self._client is None:
            return asyncio.create_task(self._wait_left(on_left)).cancel
        self._client.watch(on_left)
        return self._client.unwatch

    async def _wait_left(self, on_left: Callable[[], None]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            continue
        on_left()

    def shape(self, make: Callable[[Send], ShapesAnswer]) -> None:
        """Have the answer written by what `make` makes of the server's `send`; before its start."""
        self._shape = make(self._send)
        self._send = self._shape.send

    def promise(self, status: int, headers: RawHeaders) -> None:
        """Tell what shapes the answer, if anything does, that an engine has begun to stream.

        The answer has not started: another engine may still give it.
        """
        if self._shape is not None:
            self._shape.promise(self._head(status, headers))

    async def close(self) -> None:
        """Let go of what writes the answer, and of who looks on."""
        if self.watch is not None:
            self.watch.finish()
        if self._shape is not None:
            await self._shape.close()

    async def start(self, status: int, headers: RawHeaders) -> None:
        """Send the answer's head."""
        self.status = status
        await self._send(self._head(status, headers))

    def _head(self, status: int, headers: RawHeaders) -> Message:
        ids = [(b"x-request-id", self.request_id.encode())] if self.request_id else []
        theirs = self.headers.get("x-request-id")
        if theirs:
            ids.append((b"x-client-request-id", theirs.encode("latin-1")))
        return {
            "type": "http.response.start",
            "status": status,
            "headers": [*headers, *self.own_headers, *ids],
        }

    async def write(self, data: bytes) -> None:
        """Send a part of the answer's body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        if self.watch is not None:
            self.watch.wrote(data)

    @property
    def writes_now(self) -> bool:
        """Whether `write_now` may be called: a stream has begun, its client keeps up."""
        return self._client is not None and self._shape is None and self._client.takes_now

    def write_now(self, data: bytes) -> None:
        """Send a part of the answer's body, not empty, from outside of the request's task."""
        assert self._client is not None
        self._client.write(data)
        if self.watch is not None:
            self.watch.wrote(data)

    async def end(self, data: bytes = b"") -> None:
        """Send the last part of the answer's body."""
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def answer(self, status: int, body: bytes, headers: RawHeaders = (JSON,)) -> None:
        """Send a whole answer."""
        await self.start(status, [*headers, (b"content-length", str(len(body)).encode())])
        await self.end(body)
