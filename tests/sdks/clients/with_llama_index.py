"""LlamaIndex's model for OpenAI-like servers."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from asking import BASE_URL, ENDLESS, KEY, MAX_TOKENS, MODEL, QUESTION, leave, leave_later, tell
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

MESSAGES = [ChatMessage(role="user", content=QUESTION)]


def weather(city: str) -> str:
    """How the weather is in a city."""
    return f"Rain in {city}."


def model(max_tokens: int = MAX_TOKENS, **options: Any) -> OpenAILike:
    return OpenAILike(
        model=MODEL,
        api_base=BASE_URL,
        api_key=KEY,
        temperature=0,
        max_tokens=max_tokens,
        max_retries=0,
        is_chat_model=True,
        is_function_calling_model=True,
        **options,
    )


async def left_later() -> list[tuple[float, float]]:
    async def opened() -> Any:
        http = httpx.AsyncClient()
        stream = await model(ENDLESS, async_http_client=http).astream_chat(MESSAGES)
        await anext(stream)
        return http.aclose

    return await leave_later(opened)


def main() -> None:
    whole = model().chat(MESSAGES)
    pieces = list(model().stream_chat(MESSAGES))
    tools = [FunctionTool.from_defaults(weather)]
    with_tools = model().chat_with_tools(tools, user_msg=QUESTION)

    def opened() -> Any:
        http = httpx.Client()
        stream = model(ENDLESS, http_client=http).stream_chat(MESSAGES)
        next(stream)
        return http.close  # closing the generator leaves the connection to the collector

    tell(
        whole=whole.message.content,
        streamed="".join(piece.delta or "" for piece in pieces),
        finish_reasons=[whole.raw.choices[0].finish_reason],
        usage=[whole.raw.usage.prompt_tokens, whole.raw.usage.completion_tokens],
        with_tools=with_tools.message.content,
        left=leave(opened),
        left_later=asyncio.run(left_later()),
    )


if __name__ == "__main__":
    main()
