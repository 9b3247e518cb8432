"""LiteLLM's SDK calling us."""

from __future__ import annotations

import asyncio
from typing import Any

import litellm
from asking import BASE_URL, ENDLESS, KEY, MAX_TOKENS, MESSAGES, MODEL, leave, leave_later, tell

WHERE: Any = {"model": f"openai/{MODEL}", "api_base": BASE_URL, "api_key": KEY, "max_retries": 0}
ASKED: Any = {**WHERE, "messages": MESSAGES, "max_tokens": MAX_TOKENS, "temperature": 0}
LONG: Any = {**WHERE, "messages": MESSAGES, "max_tokens": ENDLESS, "stream": True}


async def left_later() -> list[tuple[float, float]]:
    async def opened() -> Any:
        stream = await litellm.acompletion(**LONG)
        await anext(stream)
        return stream.aclose

    return await leave_later(opened)


def main() -> None:
    whole = litellm.completion(**ASKED)
    chunks = list(litellm.completion(**ASKED, stream=True, stream_options={"include_usage": True}))
    usages = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
    refusal = None
    try:
        litellm.completion(**ASKED, n=2)
    except litellm.BadRequestError as error:
        refusal = error.status_code

    def opened() -> Any:
        stream = litellm.completion(**LONG)
        next(stream)
        return stream.completion_stream.close

    tell(
        whole=whole.choices[0].message.content,
        streamed="".join(c.choices[0].delta.content or "" for c in chunks if c.choices),
        finish_reasons=[whole.choices[0].finish_reason, chunks[-2].choices[0].finish_reason],
        usage=[whole.usage.prompt_tokens, whole.usage.completion_tokens],
        streamed_usage=[usages[-1].prompt_tokens, usages[-1].completion_tokens],
        refusal=refusal,
        left=leave(opened),
        left_later=asyncio.run(left_later()),
    )


if __name__ == "__main__":
    main()
