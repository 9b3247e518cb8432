"""The far end of `paceline bench proxy`: answers at once, so that only the proxy's cost is left.

Run as ``python -m paceline.benchmarks.proxy_engine PORT CHUNKS``.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Final

from paceline.benchmarks.plain_http import PlainHttp, serve

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


class BenchmarkEngine(PlainHttp):
    """Answers every request on a connection; a POST whose body asks for a stream gets one.

    Args:
        chunks: events of a stream, each written on its own.
    """

    def __init__(self, chunks: int) -> None:
        super().__init__()
        self._chunks = chunks

    def answer(self, body: bytes) -> None:
        """A stream if it is asked for, else a reply of a kilobyte."""
        has_ids = ASK_IDS in body
        if b'"stream":true' in body:
            self.begin_stream(self._events(has_ids=has_ids))
        else:
            self.write_whole(REPLY_WITH_IDS if has_ids else REPLY)

    async def _events(self, *, has_ids: bool) -> None:
        for number in range(self._chunks):
            if has_ids:
                self.write_event(EVENT_WITH_IDS if number else FIRST_EVENT_WITH_IDS)
            else:
                self.write_event(EVENT)
            await asyncio.sleep(0.0005)  # so that events travel one by one, as an engine's do
        self.write_event(DONE)


if __name__ == "__main__":
    asyncio.run(serve(lambda: BenchmarkEngine(int(sys.argv[2])), int(sys.argv[1])))
