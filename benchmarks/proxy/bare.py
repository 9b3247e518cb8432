"""The peer of `paceline bench proxy`: the least that uvicorn and aiohttp can do in the middle.

It looks at nothing, knows nobody and survives nothing; what it costs is the floor of any proxy
built on the two. Run as ``python -m paceline.benchmarks.proxy.bare PORT UPSTREAM_URL``.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
import uvicorn

PASSED_ON: Final = (b"content-type", b"content-length")


class BarePassThrough:
    """An ASGI application that sends every request to one server and passes the answer back.

    Args:
        url: base URL of that server.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._session: aiohttp.ClientSession

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        body = (await receive())["body"]
        response = await self._session.request(
            scope["method"],
            self._url + scope["path"],
            data=body,
            headers={"content-type": "application/json"},
        )
        headers = [(n.lower(), v) for n, v in response.raw_headers if n.lower() in PASSED_ON]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        while chunk := await response.content.readany():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _lifespan(self, receive: Any, send: Any) -> None:
        await receive()
        async with _session() as self._session:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


@asynccontextmanager
async def _session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None),
    ) as session:
        yield session


if __name__ == "__main__":
    uvicorn.run(
        BarePassThrough(sys.argv[2]),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        proxy_headers=False,
        log_level="warning",
        ws="none",
        timeout_keep_alive=75,
    )
