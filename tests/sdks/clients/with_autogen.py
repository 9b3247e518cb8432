"""AutoGen's chat client and an agent of it."""

from __future__ import annotations

import asyncio
from typing import Any

from asking import BASE_URL, ENDLESS, KEY, MAX_TOKENS, MODEL, QUESTION, leave_later, tell
from autogen_agentchat.agents import AssistantAgent
from autogen_core import CancellationToken
from autogen_core.models import UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient


def client(max_tokens: int = MAX_TOKENS) -> OpenAIChatCompletionClient:
    return OpenAIChatCompletionClient(
        model=MODEL,
        base_url=BASE_URL,
        api_key=KEY,
        temperature=0,
        max_tokens=max_tokens,
        max_retries=0,
        model_info={
            "vision": False,
            "function_calling": True,
            "json_output": False,
            "structured_output": False,
            "family": "unknown",
        },
    )


async def weather(city: str) -> str:
    """How the weather is in a city."""
    return f"Rain in {city}."


async def main() -> None:
    messages = [UserMessage(content=QUESTION, source="user")]
    whole = await client().create(messages)
    streaming = client().create_stream(
        messages, extra_create_args={"stream_options": {"include_usage": True}}
    )
    *pieces, last = [piece async for piece in streaming]
    agent = AssistantAgent("rider", client(), tools=[weather], system_message=None)
    told = await agent.run(task=QUESTION)

    async def opened() -> Any:
        token = CancellationToken()
        begun = asyncio.Event()

        async def read() -> None:
            stream = client(ENDLESS).create_stream(messages, cancellation_token=token)
            async for _ in stream:
                begun.set()

        task = asyncio.create_task(read())
        await begun.wait()

        async def cancel() -> None:
            task.cancel()
            token.cancel()
            await asyncio.gather(task, return_exceptions=True)

        return cancel

    def counted(usage: Any) -> list[int]:
        return [usage.prompt_tokens, usage.completion_tokens]

    tell(
        whole=whole.content,
        streamed="".join(str(piece) for piece in pieces),
        finish_reasons=[whole.finish_reason, last.finish_reason],
        usage=counted(whole.usage),
        streamed_usage=counted(last.usage),
        agent=told.messages[-1].to_text(),
        left=await leave_later(opened),
    )


if __name__ == "__main__":
    asyncio.run(main())
