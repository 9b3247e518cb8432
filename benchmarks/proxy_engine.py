"""The far end of `paceline bench proxy`: answers at once, so that only the proxy's cost is left.

Run as ``python -m paceline.benchmarks.proxy_engine PORT CHUNKS``.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Final

REPLY: Final = b'{"id":"x","object":"chat.completion","content":"' + b"y" * 980 + b'"}'
EVENT: Final = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":" word"}}]}\n\n'
ASK_IDS: Final = b'"return_token_ids":true'
PROMPT_IDS: Final = b",".join(b"%d" % (1000 + number) for number in range(256))
REPLY_WITH_IDS: Final = REPLY[
    :-1
] + b',"model":"m","choices":[{"index":0,"token_ids":[%b]}],"prompt_token_ids":[%b]}' % (
    PROMPT_IDS[: 5 * 200 - 1],
    PROMPT_IDS,
)
_HEAD: Final = (
    b'data: {"id":"x","object":"chat.completion.chunk","created":1764000000,"model":"m","choices":['
)
FIRST_EVENT_WITH_IDS: Final = _HEAD + (
    b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],'
    b'"prompt_token_ids":[%b]}\n\n' % PROMPT_IDS
)
EVENT_WITH_IDS: Final = _HEAD + (
    b'{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null,'
    b'"token_ids":[4321]}]}\n\n'
)
"""What vLLM sends when it is asked for token ids: a client of the proxy must not see them."""
DONE: Final = b"data: [DONE]\n\n"


class BenchmarkEngine(asyncio.Protocol):
    """Answers every request on a connection; a POST whose body asks for a stream gets one.

    Args:
        chunks: events of a stream, each written on its own.
    """

    def __init__(self, chunks: int) -> None:
        self._chunks = chunks
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
        has_ids = ASK_IDS in rest[:length]
        reply = REPLY_WITH_IDS if has_ids else REPLY
        if b'"stream":true' in rest[:length]:
            task = asyncio.ensure_future(self._stream(has_ids=has_ids))
            self._streams.add(task)
            task.add_done_callback(self._streams.discard)
        else:
            self._transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (len(reply), reply)
            )

    async def _stream(self, *, has_ids: bool) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        for number in range(self._chunks):
            if has_ids:
                self._write_chunk(EVENT_WITH_IDS if number else FIRST_EVENT_WITH_IDS)
            else:
                self._write_chunk(EVENT)
            await asyncio.sleep(0.0005)  # so that events travel one by one, as an engine's do
        self._write_chunk(DONE)
        self._transport.write(b"0\r\n\r\n")

    def _write_chunk(self, data: bytes) -> None:
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))


async def serve(port: int, chunks: int) -> None:
    """Serve on a loopback port until cancelled."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: BenchmarkEngine(chunks), "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
