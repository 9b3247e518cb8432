"""The OpenAI Agents SDK over chat completions: run, run streamed, and cancelled."""

from __future__ import annotations

import asyncio
from typing import Any

import agents
import openai
from asking import BASE_URL, ENDLESS, KEY, MAX_TOKENS, MODEL, QUESTION, leave_later, tell


@agents.function_tool
def weather(city: str) -> str:
    """How the weather is in a city."""
    return f"Rain in {city}."


async def main() -> None:
    agents.set_tracing_disabled(True)
    api = openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0)

    def agent(max_tokens: int = MAX_TOKENS) -> Any:
        return agents.Agent(
            name="rider",
            model=agents.OpenAIChatCompletionsModel(model=MODEL, openai_client=api),
            model_settings=agents.ModelSettings(
                temperature=0, max_tokens=max_tokens, include_usage=True
            ),
            tools=[weather],
        )

    whole = await agents.Runner.run(agent(), QUESTION)
    streaming = agents.Runner.run_streamed(agent(), QUESTION)
    pieces = [
        event.data.delta
        async for event in streaming.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]

    async def opened() -> Any:
        run = agents.Runner.run_streamed(agent(ENDLESS), QUESTION)
        events = run.stream_events()
        async for event in events:
            if event.type == "raw_response_event" and "delta" in event.data.type:
                break

        async def cancel() -> None:
            run.cancel()
            async for _ in events:
                pass

        return cancel

    def counted(run: Any) -> list[int]:
        return [run.context_wrapper.usage.input_tokens, run.context_wrapper.usage.output_tokens]

    tell(
        whole=whole.final_output,
        streamed="".join(pieces),
        streamed_output=streaming.final_output,
        usage=counted(whole),
        streamed_usage=counted(streaming),
        left=await leave_later(opened),
    )
    await api.close()


if __name__ == "__main__":
    asyncio.run(main())
