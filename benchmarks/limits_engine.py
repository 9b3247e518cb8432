"""The far end of `paceline bench limits`: streams of drawn lengths that say their usage, as vLLM.

Run as ``python -m paceline.benchmarks.limits_engine PORT``. A request says what it wants in fields
of its own: ``say`` tokens (0: a whole answer of one token, at once), ``speed`` tokens a second.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Final

BYTES_PER_TOKEN: Final = 4
EVENT_SECONDS: Final = 0.1
_HEAD: Final = (
    b'data: {"id":"x","object":"chat.completion.chunk","created":1764000000,"model":"m","choices":['
)
_CHOICE: Final = b'{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}'
_ENDING: Final = b'{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":"stop"}'


class LimitsEngine(asyncio.Protocol):
    """Answers every request on a connection, one after the other."""

    def __init__(self) -> None:
        self._buffer = b""
        self._transport: asyncio.Transport
        self._streams: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer as soon as a request is whole."""
        self._buffer += data
        head, border, rest = self._buffer.partition(b"\r\n\r\n")
        if not border:
            return
        announced = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        length = int(announced or 0)
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        wanted: dict[str, Any] = json.loads(rest[:length]) if length else {}
        num_read = len(wanted.get("prompt", "")) // BYTES_PER_TOKEN
        if wanted.get("stream"):
            task = asyncio.ensure_future(self._stream(num_read, wanted))
            self._streams.add(task)
            task.add_done_callback(self._streams.discard)
            return
        body = b'{"id":"x","object":"chat.completion","model":"m","choices":[],%b}' % _usage(
            num_read, 1
        )
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )

    async def _stream(self, num_read: int, wanted: dict[str, Any]) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        options = wanted.get("stream_options") or {}
        said, say = 0, int(wanted["say"])
        while said < say and not self._transport.is_closing():
            said = min(said + max(int(wanted["speed"] * EVENT_SECONDS), 1), say)
            each = b"," + _usage(num_read, said) if options.get("continuous_usage_stats") else b""
            self._write(_HEAD + (_CHOICE if said < say else _ENDING) + b"]" + each + b"}\n\n")
            await asyncio.sleep(EVENT_SECONDS)
        if options.get("include_usage"):
            self._write(_HEAD + b"]," + _usage(num_read, said) + b"}\n\n")
        self._write(b"data: [DONE]\n\n")
        self._transport.write(b"0\r\n\r\n")

    def _write(self, data: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))


def _usage(num_read: int, num_said: int) -> bytes:
    numbers = (num_read, num_read + num_said, num_said)
    return b'"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}' % numbers


async def serve(port: int) -> None:
    """Serve on a loopback port until cancelled."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(LimitsEngine, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
