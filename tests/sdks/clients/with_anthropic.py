"""The anthropic SDK: whole, streamed, counted, refused, and left in the middle."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
from asking import BASE_URL, ENDLESS, KEY, MAX_TOKENS, MESSAGES, MODEL, leave, leave_later, tell

ROOT = BASE_URL.removesuffix("/v1")
WEATHER: Any = {
    "name": "weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
ASKED: Any = {
    "model": MODEL,
    "messages": MESSAGES,
    "max_tokens": MAX_TOKENS,
    "extra_body": {"temperature": 0},
}
LONG: Any = {"model": MODEL, "messages": MESSAGES, "max_tokens": ENDLESS, "stream": True}


async def left_later() -> list[float]:
    async with anthropic.AsyncAnthropic(base_url=ROOT, api_key=KEY, max_retries=0) as api:

        async def opened() -> Any:
            stream = await api.messages.create(**LONG)
            events = aiter(stream)
            while (await anext(events)).type != "content_block_delta":
                pass
            return stream.close

        return await leave_later(opened)


def counted_of(usage: anthropic.types.Usage) -> list[int]:
    """Tokens read, those that had been read before included, and said."""
    return [usage.input_tokens + (usage.cache_read_input_tokens or 0), usage.output_tokens]


def main() -> None:
    with anthropic.Anthropic(base_url=ROOT, api_key=KEY, max_retries=0) as api:
        whole = api.messages.create(**ASKED)
        with api.messages.stream(**ASKED, tools=[WEATHER]) as streaming:
            events = [event.type for event in streaming]
            streamed = streaming.get_final_message()
        counted = api.messages.count_tokens(model=MODEL, messages=MESSAGES)
        refused = []
        for wrong in ({"model": "claude-9"}, {"tool_choice": {"type": "any"}, "tools": [WEATHER]}):
            try:
                api.messages.create(**{**ASKED, **wrong})
            except anthropic.APIStatusError as error:
                refused.append([error.status_code, error.body["error"]["type"]])

        def opened() -> Any:
            stream = api.messages.create(**LONG)
            for event in stream:
                if event.type == "content_block_delta":
                    break
            return stream.close

        tell(
            whole="".join(block.text for block in whole.content),
            streamed="".join(block.text for block in streamed.content),
            events=sorted(set(events)),
            finish_reasons=[whole.stop_reason, streamed.stop_reason],
            usage=counted_of(whole.usage),
            streamed_usage=counted_of(streamed.usage),
            counted=counted.input_tokens,
            refused=refused,
            left=leave(opened),
            left_later=asyncio.run(left_later()),
        )


if __name__ == "__main__":
    main()
