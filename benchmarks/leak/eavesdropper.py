"""One stream as it is seen on the wire: when something was read, and how much.

Times and sizes are all that an eavesdropper has; the bytes themselves are kept to measure what
shaping costs, and to compare them with what the engine said.
"""

from __future__ import annotations

import asyncio
import bisect
import json
import re
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from paceline.errors import PacelineError

END: Final = b"\r\n0\r\n\r\n"
DATA: Final = re.compile(rb"^data: ", re.MULTILINE)


@dataclass(frozen=True)
class Trace:
    """What was read of one answer.

    Attributes:
        prompt: which prompt it answers.
        repeat: which of the answers to it.
        times: seconds since the request was sent, of each read.
        sizes: bytes of each.
        raw: all of them.
    """

    prompt: int
    repeat: int
    times: tuple[float, ...]
    sizes: tuple[int, ...]
    raw: bytes

    @cached_property
    def _chunks(self) -> list[tuple[int, bytes]]:
        """The chunks of the body, and where in `raw` each ends."""
        chunks: list[tuple[int, bytes]] = []
        place = self.raw.index(b"\r\n\r\n") + 4
        while True:
            border = self.raw.index(b"\r\n", place)
            length = int(self.raw[place:border], 16)
            if not length:
                return chunks
            place = border + 2 + length
            chunks.append((place, self.raw[border + 2 : place]))
            place += 2

    @cached_property
    def body(self) -> bytes:
        """The stream."""
        return b"".join(data for _, data in self._chunks)

    @property
    def said(self) -> bytes:
        """The stream without comments and empty lines, an empty line behind each other.

        What an engine said that sends none of them and one line in each event.
        """
        lines = (line for line in self.body.splitlines() if line and not line.startswith(b":"))
        return b"".join(line + b"\n\n" for line in lines)

    def seconds_of(self, event: int) -> float:
        """When an event was there, by its number; negative ones count from the end."""
        starts = [match.start() for match in DATA.finditer(self.body)]
        return self._time_of(starts[event])

    @property
    def seconds(self) -> float:
        """When it ended."""
        return self.times[-1]

    def _time_of(self, place: int) -> float:
        """When the byte at `place` of the body was there."""
        for where, data in self._chunks:
            end = where
            if place < len(data):
                break
            place -= len(data)
        read_until = self._read_until
        return self.times[min(bisect.bisect_left(read_until, end), len(read_until) - 1)]

    @cached_property
    def _read_until(self) -> list[int]:
        totals, total = [], 0
        for size in self.sizes:
            total += size
            totals.append(total)
        return totals


class Listener(asyncio.Protocol):
    """Reads one answer and notes every read.

    Args:
        request: bytes to send when connected.
    """

    def __init__(self, request: bytes) -> None:
        self.reads: list[tuple[float, bytes]] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._tail = b""
        self._began = 0.0
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._began = time.perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Note what came, and leave after the answer's end."""
        self.reads.append((time.perf_counter() - self._began, data))
        self._tail = (self._tail + data)[-len(END) :]
        if self._tail == END:
            self._transport.close()

    def connection_lost(self, _error: Exception | None) -> None:
        """The answer has ended, or broken off."""
        if self._tail == END:
            self.done.set_result(None)
        else:
            head = b"".join(data for _, data in self.reads)[:200]
            self.done.set_exception(PacelineError(f"a stream broke off: {head!r}"))


async def listen(port: int, key: str, number: int) -> list[tuple[float, bytes]]:
    """Ask the proxy for recording `number`; times and bytes of every read.

    Raises:
        PacelineError: the answer broke off.
    """
    request = {"model": str(number), "stream": True, "messages": [{"role": "user", "content": "?"}]}
    body = json.dumps(request).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nx-api-key: {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    _, listener = await loop.create_connection(
        lambda: Listener(head.encode() + body), "127.0.0.1", port
    )
    await listener.done
    return listener.reads
