"""The least of an HTTP client that measures a proxy: whole requests out, whole answers in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

from paceline.errors import ConfigError

CHAT_PATH: Final = "/v1/chat/completions"
OK: Final = b" 200 "


@asynccontextmanager
async def connection(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a loopback port, closed at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


async def read_whole(reader: asyncio.StreamReader) -> bytes:
    """Read an answer with a length to its end; returns its head, in lower case.

    Raises:
        ConfigError: it is not a success.
        asyncio.IncompleteReadError: it breaks off.
    """
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if OK not in head.split(b"\r\n", 1)[0]:
        raise ConfigError(f"the benchmark's server answered {head[:80]!r}; is the port taken?")
    length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
    await reader.readexactly(int(length))
    return head


def chat_request(
    port: int,
    *,
    num_bytes: int,
    stream: bool = False,
    headers: Mapping[str, str] | None = None,
    opening: str = "",
) -> bytes:
    """A chat whose one message begins with `opening` and has so many bytes behind it."""
    content = opening + "x" * num_bytes
    flag = "true" if stream else "false"
    body = (
        f'{{"model":"m","stream":{flag},"messages":[{{"role":"user","content":"{content}"}}]}}'
    ).encode()
    return post(port, body, headers)


def post(port: int, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """A request for a chat with that body, JSON."""
    more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = (
        f"POST {CHAT_PATH} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n{more}"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
