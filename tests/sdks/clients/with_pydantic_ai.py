"""Pydantic AI: run, run streamed, and left in the middle."""

from __future__ import annotations

import asyncio
from typing import Any

from asking import BASE_URL, ENDLESS, KEY, MAX_TOKENS, MODEL, QUESTION, leave_later, tell
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

MODEL_OF_OURS = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=BASE_URL, api_key=KEY))
AGENT: Agent[None, str] = Agent(MODEL_OF_OURS)


@AGENT.tool_plain
def weather(city: str) -> str:
    """How the weather is in a city."""
    return f"Rain in {city}."


async def main() -> None:
    settings: Any = {"temperature": 0, "max_tokens": MAX_TOKENS}
    whole = await AGENT.run(QUESTION, model_settings=settings)
    async with AGENT.run_stream(QUESTION, model_settings=settings) as stream:
        pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
        streamed_usage = stream.usage

    async def opened() -> Any:
        running = AGENT.run_stream(QUESTION, model_settings={"max_tokens": ENDLESS})
        stream = await running.__aenter__()
        await anext(stream.stream_text(delta=True, debounce_by=None))

        async def cancel() -> None:
            await running.__aexit__(None, None, None)

        return cancel

    tell(
        whole=whole.output,
        streamed="".join(pieces),
        usage=[whole.usage.input_tokens, whole.usage.output_tokens],
        streamed_usage=[streamed_usage.input_tokens, streamed_usage.output_tokens],
        left=await leave_later(opened),
    )


if __name__ == "__main__":
    asyncio.run(main())
