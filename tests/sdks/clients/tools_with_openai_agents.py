"""An agent of the OpenAI Agents SDK that has to call its tool first."""

from __future__ import annotations

import asyncio

import agents
import openai
from asking import BASE_URL, KEY, MODEL, tell
from weather_tool import ASKED_FOR, MAX_TOKENS, QUESTION, City, rain_in


@agents.function_tool
def weather(city: City) -> str:
    """How the weather is in a city."""
    return rain_in(city)


async def main() -> None:
    agents.set_tracing_disabled(True)
    api = openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0)
    agent = agents.Agent(
        name="rider",
        model=agents.OpenAIChatCompletionsModel(model=MODEL, openai_client=api),
        model_settings=agents.ModelSettings(
            temperature=0, max_tokens=MAX_TOKENS, tool_choice="required"
        ),
        tools=[weather],
    )
    run = agents.Runner.run_streamed(agent, QUESTION, max_turns=3)
    kinds = [event.name async for event in run.stream_events() if hasattr(event, "name")]
    tell(kinds=kinds, reply=run.final_output, cities=ASKED_FOR)
    await api.close()


if __name__ == "__main__":
    asyncio.run(main())
