"""An engine that misbehaves on command, on a real socket, for what real engines cannot show."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from paceline.middleware.config import ProxyConfig, make_config
from paceline.middleware.server import RunningProxy, running_proxy
from waiting import wait_until

OK = b"HTTP/1.1 200 OK\r\n"
JSON_REPLY = b'{"id":"1","object":"chat.completion","created":1,"model":"m","choices":[]}'


@dataclass
class SeenRequest:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Script = Callable[[SeenRequest, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def reply_json(
    _request: SeenRequest, _reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    head = OK + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(JSON_REPLY)
    writer.write(head + JSON_REPLY)


@dataclass
class ScriptedEngine:
    """Answers generation requests as its script says; health checks while `healthy`.

    Attributes:
        health_path: where it answers them; it does not tell a proxy what it serves, and any other
            request is a generation request.
        script: writes the answer to one request.
        seen: generation requests so far.
        left: set when the proxy closed a connection while a script was waiting on it.
    """

    script: Script = reply_json
    healthy: bool = True
    health_path: str = "/health"
    seen: list[SeenRequest] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def wait_until_left(self, reader: asyncio.StreamReader) -> None:
        if not await reader.read(1):
            self.left.set()

    async def serve(self, started: threading.Event, stop: asyncio.Event) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        try:
            await stop.wait()
        finally:
            server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await _read_request(reader)) is not None:
                if request.path == self.health_path:
                    status = b"200 OK" if self.healthy else b"500 No"
                    writer.write(b"HTTP/1.1 " + status + b"\r\ncontent-length: 0\r\n\r\n")
                elif request.path == "/v1/models" and "x-request-id" not in request.headers:
                    writer.write(b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n")
                else:
                    self.seen.append(request)
                    await self.script(request, reader, writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()


async def _read_request(reader: asyncio.StreamReader) -> SeenRequest | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return SeenRequest(method, path, headers, body)


@pytest.fixture
def engines() -> Iterator[Callable[..., ScriptedEngine]]:
    """Start scripted engines on a loop of their own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    stops: list[asyncio.Event] = []

    def start(script: Script = reply_json) -> ScriptedEngine:
        engine, started, stop = ScriptedEngine(script), threading.Event(), asyncio.Event()
        stops.append(stop)
        asyncio.run_coroutine_threadsafe(engine.serve(started, stop), loop)
        assert started.wait(10)
        return engine

    yield start

    async def shut_down() -> None:
        for stop in stops:
            stop.set()
        rest = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    asyncio.run_coroutine_threadsafe(shut_down(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture
def proxies() -> Iterator[Callable[..., RunningProxy]]:
    """Start proxies in front of engines; each is ready when returned."""
    with ExitStack() as stack:

        def start(*urls: str, wait_for_health: bool = True, **settings: Any) -> RunningProxy:
            upstreams = [
                {"name": f"e{number}", "url": url} | settings.pop(f"e{number}", {})
                for number, url in enumerate(urls)
            ]
            timing = settings.pop("limit_timing", None)
            config: ProxyConfig = make_config(
                **{
                    "listen": {"port": 0},
                    "upstreams": upstreams,
                    "health_interval_seconds": 0.05,
                    **settings,
                }
            )
            proxy = stack.enter_context(running_proxy(config, limit_timing=timing))
            if wait_for_health:
                wait_until(lambda: proxy.proxy.ready)
            return proxy

        yield start
