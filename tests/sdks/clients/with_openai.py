"""The openai SDK, synchronous and not: whole, streamed, with its stream helper, and left."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
from asking import BASE_URL, ENDLESS, KEY, MAX_TOKENS, MESSAGES, MODEL, leave, leave_later, tell

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
ASKED: Any = {"model": MODEL, "messages": MESSAGES, "max_tokens": MAX_TOKENS, "temperature": 0}
LONG: Any = {"model": MODEL, "messages": MESSAGES, "max_tokens": ENDLESS, "stream": True}


def counted(usage: Any) -> list[int]:
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    return [usage.prompt_tokens, usage.completion_tokens]


async def later() -> dict[str, Any]:
    async with openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0) as api:
        replies = await asyncio.gather(*(api.chat.completions.create(**ASKED) for _ in range(3)))
        texts = {reply.choices[0].message.content for reply in replies}

        async def opened() -> Any:
            begun = asyncio.Event()

            async def read() -> None:
                async for _ in await api.chat.completions.create(**LONG):
                    begun.set()

            task = asyncio.create_task(read())
            await begun.wait()

            async def cancel() -> None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

            return cancel

        return {"texts_later": list(texts), "left_later": await leave_later(opened)}


def main() -> None:
    with openai.OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0) as api:
        ask = api.chat.completions.create
        whole = ask(**ASKED)
        chunks = list(ask(**ASKED, stream=True, stream_options={"include_usage": True}))
        with api.chat.completions.stream(**ASKED, tools=[WEATHER]) as helped:
            events = [event.type for event in helped]
            final = helped.current_completion_snapshot  # the finished one must not end by length
        raw = api.chat.completions.with_raw_response.create(
            **ASKED,
            extra_headers={"x-paceline-explain": "on", "x-session-id": "rivers"},
            prompt_cache_key="rivers",
        )
        forced: Any = {"type": "function", "function": {"name": "weather"}}
        try:
            ask(**ASKED, tools=[WEATHER], tool_choice=forced)
            refusal = None
        except openai.BadRequestError as error:
            refusal = error.code

        def opened() -> Any:
            stream = ask(**LONG)
            next(iter(stream))
            return stream.close

        tell(
            whole=whole.choices[0].message.content,
            streamed="".join(c.choices[0].delta.content or "" for c in chunks if c.choices),
            helped=final.choices[0].message.content,
            events=sorted(set(events)),
            finish_reasons=[
                whole.choices[0].finish_reason,
                next(c.choices[0].finish_reason for c in reversed(chunks) if c.choices),
                final.choices[0].finish_reason,
            ],
            usage=counted(whole.usage),
            streamed_usage=counted(chunks[-1].usage),
            explained=raw.headers.get("x-paceline-reason"),
            refusal=refusal,
            left=leave(opened),
            **asyncio.run(later()),
        )


if __name__ == "__main__":
    main()
