"""The far end of `paceline bench proxy`: answers at once, so that only the proxy's cost is left.

Run as ``python -m paceline.benchmarks.proxy.engine PORT``. What a request wants stands at the
beginning of its message, where any proxy leaves it: ``[[200 events, each 1 ms]]`` for a stream,
``ticks`` in place of ``each`` for one that speaks when all others do, as an engine's batch;
``[[hold]]`` for no answer at all. A GET of `LEFT_PATH` tells which clients have left.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
import time
from dataclasses import asdict, dataclass
from typing import Final

import uvloop

from paceline.benchmarks.plain_http import PlainHttp, serve

LEFT_PATH: Final = b"/left"
_WANTED: Final = re.compile(rb"\[\[(\d{1,6}) events, (each|ticks) (\d{1,6}) ms\]\]")
_HOLD: Final = b"[[hold]]"
_STREAM: Final = re.compile(rb'"stream"\s*:\s*true')
ASK_IDS: Final = b'"return_token_ids":true'
PROMPT_IDS: Final = b",".join(b"%d" % (1000 + number) for number in range(256))
_USAGE: Final = b'"usage":{"prompt_tokens":9,"completion_tokens":9,"total_tokens":18}'
_REPLY: Final = (
    b'{"id":"x","object":"chat.completion","created":1764000000,"model":"m","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"%b"},"finish_reason":"stop"%b}],%b%b}'
)
REPLY: Final = _REPLY % (b"y" * 820, b"", _USAGE, b"")
REPLY_WITH_IDS: Final = _REPLY % (
    b"y" * 820,
    b',"token_ids":[%b]' % PROMPT_IDS[: 5 * 200 - 1],
    _USAGE,
    b',"prompt_token_ids":[%b]' % PROMPT_IDS,
)
_HEAD: Final = (
    b'data: {"id":"x","object":"chat.completion.chunk","created":1764000000,"model":"m","choices":['
)
EVENT: Final = _HEAD + b'{"index":0,"delta":{"content":" %d"},"finish_reason":null}]}\n\n'
"""Says in nanoseconds of the machine's monotonic clock when it was written."""
FIRST_EVENT_WITH_IDS: Final = _HEAD + (
    b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],'
    b'"prompt_token_ids":[%b]}\n\n' % PROMPT_IDS
)
EVENT_WITH_IDS: Final = _HEAD + (
    b'{"index":0,"delta":{"content":" %d"},"logprobs":null,"finish_reason":null,'
    b'"token_ids":[4321]}]}\n\n'
)
"""What vLLM sends when it is asked for token ids: a client of the proxy must not see them."""
LAST_EVENT: Final = _HEAD + b'{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE: Final = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Left:
    """What became of requests that are not answered at once.

    Attributes:
        num_come: how many have come.
        num_left: how many of them have lost their client.
        last_ns: when the last did, by the machine's monotonic clock.
    """

    num_come: int = 0
    num_left: int = 0
    last_ns: int = 0


class BenchmarkEngine(PlainHttp):
    """Answers every request on a connection.

    Args:
        left: counts clients that leave; shared by all connections.
    """

    def __init__(self, left: Left) -> None:
        super().__init__()
        self._left = left
        self._is_open = False

    def answer(self, body: bytes) -> None:
        """As the request's message says; a reply of a kilobyte if it says nothing."""
        has_ids = ASK_IDS in body
        wanted = _WANTED.search(body) if b"[[" in body else None
        if wanted is not None and _STREAM.search(body):
            self._open()
            count, when, milliseconds = wanted.groups()
            paced = int(milliseconds) / 1e3, when == b"ticks"
            self.begin_stream(self._events(int(count), *paced, has_ids=has_ids))
        elif _HOLD in body:
            self._open()
        elif self.path == LEFT_PATH:
            self.write_whole(json.dumps(asdict(self._left)).encode())
        else:
            self.write_whole(REPLY_WITH_IDS if has_ids else REPLY)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note when it was, if something was still to be said."""
        super().connection_lost(exc)
        if self._is_open:
            self._left.num_left += 1
            self._left.last_ns = time.monotonic_ns()

    def _open(self) -> None:
        self._is_open = True
        self._left.num_come += 1

    async def _events(self, count: int, seconds: float, in_step: bool, *, has_ids: bool) -> None:
        event = EVENT_WITH_IDS if has_ids else EVENT
        if has_ids:
            self.write_event(FIRST_EVENT_WITH_IDS)
        for _ in range(count):
            # so that events travel one by one, as an engine's do
            await asyncio.sleep(_until_tick(seconds) if in_step else seconds)
            self.write_event(event % time.monotonic_ns())
        self.write_event(LAST_EVENT)
        self.write_event(DONE)
        self._is_open = False


def _until_tick(seconds: float) -> float:
    now = time.monotonic()
    return (math.floor(now / seconds) + 1) * seconds - now


if __name__ == "__main__":
    departures = Left()
    uvloop.run(serve(lambda: BenchmarkEngine(departures), int(sys.argv[1])))
