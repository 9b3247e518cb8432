"""Forced tool calls through LiteLLM's SDK, whole and streamed, and their result sent back.

A named call is asked for plainly, a required one by the asynchronous half.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import litellm
from asking import BASE_URL, KEY, MODEL, tell
from weather_tool import FEW_TOKENS, MAX_TOKENS, NAME, QUESTION, TOOL, rain_in

MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
WHERE: Any = {"model": f"openai/{MODEL}", "api_base": BASE_URL, "api_key": KEY, "max_retries": 0}
ASKED: Any = {
    **WHERE,
    "messages": MESSAGES,
    "tools": [TOOL],
    "temperature": 0,
    "max_tokens": MAX_TOKENS,
}
NAMED: Any = {"type": "function", "function": {"name": NAME}}


async def required() -> tuple[Any, Any]:
    """The whole answer, and what the pieces of a stream are put together to."""
    whole = await litellm.acompletion(**ASKED, tool_choice="required")
    stream: Any = await litellm.acompletion(**ASKED, tool_choice="required", stream=True)
    return whole, litellm.stream_chunk_builder([chunk async for chunk in stream])


def calls_of(answer: Any) -> list[Any]:
    return answer.choices[0].message.tool_calls or []


def main() -> None:
    whole: Any = litellm.completion(**ASKED, tool_choice=NAMED)
    pieces: Any = litellm.completion(**ASKED, tool_choice=NAMED, stream=True)
    streamed = litellm.stream_chunk_builder(list(pieces))
    later, later_streamed = asyncio.run(required())
    call = calls_of(whole)[0]
    told = [
        *MESSAGES,
        whole.choices[0].message.model_dump(exclude_none=True),
        {
            "role": "tool",
            "tool_call_id": call.id,
            "content": rain_in(json.loads(call.function.arguments)["city"]),
        },
    ]
    reply: Any = litellm.completion(**WHERE, messages=told, temperature=0, max_tokens=FEW_TOKENS)
    answers = (whole, streamed, later, later_streamed)
    tell(
        calls=[[each.function.name for each in calls_of(answer)] for answer in answers],
        arguments=[[each.function.arguments for each in calls_of(answer)] for answer in answers],
        reasons=[later.choices[0].finish_reason, later_streamed.choices[0].finish_reason],
        reply=reply.choices[0].message.content,
    )


if __name__ == "__main__":
    main()
