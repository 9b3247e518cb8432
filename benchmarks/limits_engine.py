"""The far end of `paceline bench limits`: streams of drawn lengths that say their usage, as vLLM.

Run as ``python -m paceline.benchmarks.limits_engine PORT``. A request says what it wants in fields
of its own: ``say`` tokens (0: a whole answer of one token, at once), ``speed`` tokens a second.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Final

from paceline.benchmarks.plain_http import PlainHttp, serve

BYTES_PER_TOKEN: Final = 4
EVENT_SECONDS: Final = 0.1
_HEAD: Final = (
    b'data: {"id":"x","object":"chat.completion.chunk","created":1764000000,"model":"m","choices":['
)
_CHOICE: Final = b'{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}'
_ENDING: Final = b'{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":"stop"}'


class LimitsEngine(PlainHttp):
    """Answers every request on a connection, one after the other."""

    def answer(self, body: bytes) -> None:
        """As the request says in fields of its own."""
        wanted: dict[str, Any] = json.loads(body) if body else {}
        num_read = len(wanted.get("prompt", "")) // BYTES_PER_TOKEN
        if wanted.get("stream"):
            self.begin_stream(self._events(num_read, wanted))
            return
        usage = _usage(num_read, 1)
        self.write_whole(
            b'{"id":"x","object":"chat.completion","model":"m","choices":[],%b}' % usage
        )

    async def _events(self, num_read: int, wanted: dict[str, Any]) -> None:
        options = wanted.get("stream_options") or {}
        said, say = 0, int(wanted["say"])
        while said < say and not self.is_closing:
            said = min(said + max(int(wanted["speed"] * EVENT_SECONDS), 1), say)
            each = b"," + _usage(num_read, said) if options.get("continuous_usage_stats") else b""
            self.write_event(_HEAD + (_CHOICE if said < say else _ENDING) + b"]" + each + b"}\n\n")
            await asyncio.sleep(EVENT_SECONDS)
        if options.get("include_usage"):
            self.write_event(_HEAD + b"]," + _usage(num_read, said) + b"}\n\n")
        self.write_event(b"data: [DONE]\n\n")


def _usage(num_read: int, num_said: int) -> bytes:
    numbers = (num_read, num_read + num_said, num_said)
    return b'"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}' % numbers


if __name__ == "__main__":
    asyncio.run(serve(LimitsEngine, int(sys.argv[1])))
