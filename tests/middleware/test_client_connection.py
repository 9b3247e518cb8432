"""What the proxy's server tells of clients and takes for them, and how it goes without."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvicorn
import uvloop
from uvicorn.config import HTTPProtocolType

from paceline.middleware.client_connection import ClientProtocol
from paceline.middleware.exchange import Exchange, Receive, Scope, Send

PIECE = b"data: " + b"x" * 8192 + b"\n\n"
REQUEST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b"
LONG_BODY = b"b" * 300_000
"""More than uvicorn reads ahead: it stops reading while this is taken."""


def asking(
    http: HTTPProtocolType,
    answer: Callable[[Exchange], Coroutine[Any, Any, None]],
    ask: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]],
) -> None:
    """Serve one client on a real socket, whose request `answer` answers once it is read."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        await exchange.read_body(max_bytes=len(LONG_BODY))
        await answer(exchange)

    async def work() -> None:
        config = uvicorn.Config(app, http=http, lifespan="off", log_level="critical", ws="none")
        server = uvicorn.Server(config)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(server.serve([listener]))
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            await asyncio.wait_for(ask(reader, writer), 20)
            writer.close()
            server.should_exit = True
            await serving

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())


@pytest.mark.parametrize("body", [b"{}", LONG_BODY], ids=["short", "long"])
@pytest.mark.parametrize("http", ["httptools", ClientProtocol], ids=["any server", "ours"])
def test_a_client_that_leaves_is_seen_once(http: HTTPProtocolType, body: bytes) -> None:
    """By any server; behind a body that was too long to be read at once, too."""
    num_left = 0
    is_asked, has_left = asyncio.Event(), asyncio.Event()

    async def answer(exchange: Exchange) -> None:
        def left() -> None:
            nonlocal num_left
            num_left += 1
            has_left.set()

        exchange.watch_client(left)
        is_asked.set()
        await has_left.wait()

    async def ask(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(REQUEST % (len(body), body))
        await is_asked.wait()
        writer.close()
        await has_left.wait()

    asking(http, answer, ask)
    assert num_left == 1


def test_pieces_are_taken_at_once_while_the_client_keeps_up() -> None:
    """Not before the head, not while it reads too slowly; none is lost or changed."""
    num_pieces = 0

    async def answer(exchange: Exchange) -> None:
        nonlocal num_pieces
        assert not exchange.writes_now
        await exchange.start(200, [(b"content-type", b"text/event-stream")])
        while exchange.writes_now:
            exchange.write_now(PIECE)
            num_pieces += 1
        await exchange.write(PIECE)  # waits for it
        assert exchange.writes_now
        await exchange.end()

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(REQUEST % (2, b"{}"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head
        chunk = b"%x\r\n%b\r\n" % (len(PIECE), PIECE)
        received = b""
        while not received.endswith(b"\r\n0\r\n\r\n"):
            received += await reader.read(1 << 20)
        assert received == chunk * (num_pieces + 1) + b"0\r\n\r\n"

    asking(ClientProtocol, answer, ask)
    assert num_pieces > 1
