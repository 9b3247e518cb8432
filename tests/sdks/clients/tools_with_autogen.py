"""Required calls through AutoGen's client, whole and streamed, and a result sent back."""

from __future__ import annotations

import asyncio
from typing import Any

from asking import BASE_URL, KEY, MODEL, tell
from autogen_core import CancellationToken, FunctionCall
from autogen_core.models import (
    AssistantMessage,
    FunctionExecutionResult,
    FunctionExecutionResultMessage,
    UserMessage,
)
from autogen_core.tools import FunctionTool
from autogen_ext.models.openai import OpenAIChatCompletionClient
from weather_tool import ASKED_FOR, DESCRIPTION, FEW_TOKENS, MAX_TOKENS, QUESTION, City, rain_in


async def weather(city: City) -> str:
    """How the weather is in a city."""
    return rain_in(city)


def client(max_tokens: int) -> OpenAIChatCompletionClient:
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


def calls_of(result: Any) -> list[FunctionCall]:
    assert not isinstance(result.content, str), result
    return list(result.content)


async def main() -> None:
    tool = FunctionTool(weather, DESCRIPTION)
    asked: list[Any] = [UserMessage(content=QUESTION, source="user")]
    whole = await client(MAX_TOKENS).create(asked, tools=[tool], tool_choice="required")
    streaming = client(MAX_TOKENS).create_stream(asked, tools=[tool], tool_choice="required")
    *_, last = [piece async for piece in streaming]
    call = calls_of(whole)[0]
    arguments = FunctionTool.args_type(tool).model_validate_json(call.arguments)
    done = await tool.run(arguments, CancellationToken())
    told = [
        *asked,
        AssistantMessage(content=[call], source="rider"),
        FunctionExecutionResultMessage(
            content=[
                FunctionExecutionResult(
                    content=tool.return_value_as_string(done), name=call.name, call_id=call.id
                )
            ]
        ),
    ]
    reply = await client(FEW_TOKENS).create(told)
    tell(
        calls=[each.name for each in calls_of(whole)],
        arguments=[each.arguments for each in calls_of(whole)],
        streamed=[each.arguments for each in calls_of(last)],
        reason=whole.finish_reason,
        cities=ASKED_FOR,
        reply=reply.content,
    )


if __name__ == "__main__":
    asyncio.run(main())
