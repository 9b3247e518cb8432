"""The OpenAI Agents SDK over chat completions, with a tool, streamed.

pip install openai-agents
python examples/agents_sdk.py
"""

import asyncio
import os

import agents
import openai

BASE_URL = os.environ.get("PACELINE_URL", "http://127.0.0.1:8080/v1")
KEY = os.environ.get("PACELINE_KEY", "local")
MODEL = os.environ.get("PACELINE_MODEL", "smollm2")


@agents.function_tool
def weather(city: str) -> str:
    """How the weather is in a city."""
    return f"Rain in {city}, wind from the west."


async def main() -> None:
    agents.set_tracing_disabled(True)  # or it would send traces to OpenAI
    client = openai.AsyncOpenAI(
        base_url=BASE_URL, api_key=KEY, default_headers={"x-session-id": "tour"}
    )
    agent = agents.Agent(
        name="Domestique",
        instructions="You are brief.",
        model=agents.OpenAIChatCompletionsModel(model=MODEL, openai_client=client),
        model_settings=agents.ModelSettings(temperature=0, max_tokens=40, include_usage=True),
        tools=[weather],
    )
    run = agents.Runner.run_streamed(agent, "How do riders share the work at the front?")
    async for event in run.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            print(event.data.delta, end="", flush=True)
    print(f"\n[{run.context_wrapper.usage.output_tokens} tokens]")
    await client.close()


if __name__ == "__main__":
    asyncio.run(main())
