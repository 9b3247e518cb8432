"""Structured output of Pydantic AI, which is a tool that has to be called; whole and streamed."""

from __future__ import annotations

import asyncio
from typing import Any

from asking import BASE_URL, KEY, MODEL, tell
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from weather_tool import MAX_TOKENS, QUESTION, City


class Place(BaseModel):
    """A city that is asked about."""

    city: City


async def main() -> None:
    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=BASE_URL, api_key=KEY))
    agent: Any = Agent(model, output_type=Place)
    settings: Any = {"temperature": 0, "max_tokens": MAX_TOKENS}
    whole = await agent.run(QUESTION, model_settings=settings)
    async with agent.run_stream(QUESTION, model_settings=settings) as stream:
        streamed = await stream.get_output()
    tell(cities=[whole.output.city, streamed.city])


if __name__ == "__main__":
    asyncio.run(main())
