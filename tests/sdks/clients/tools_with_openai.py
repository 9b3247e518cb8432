"""Forced tool calls through the openai SDK, whole and streamed, and their result sent back.

First as a chat, then through the Responses API.
"""

from __future__ import annotations

import json
from typing import Any

import openai
from asking import BASE_URL, KEY, MODEL, tell
from weather_tool import (
    DESCRIPTION,
    FEW_TOKENS,
    MAX_TOKENS,
    NAME,
    QUESTION,
    SCHEMA,
    TOOL,
    rain_in,
)

NAMED: Any = {"type": "function", "function": {"name": NAME}}
ASKED: Any = [{"role": "user", "content": QUESTION}]


def chat(api: openai.OpenAI) -> dict[str, Any]:
    """What a named call and a required one come to."""
    asked: Any = {"model": MODEL, "temperature": 0, "max_tokens": MAX_TOKENS, "messages": ASKED}
    asked["tools"] = [TOOL]
    ask = api.chat.completions.create
    whole = ask(**asked, tool_choice=NAMED).choices[0].message
    assert whole.tool_calls
    call: Any = whole.tool_calls[0]
    with api.chat.completions.stream(**asked, tool_choice=NAMED) as streaming:
        events = {event.type for event in streaming}
        streamed: Any = streaming.current_completion_snapshot.choices[0].message
    required = ask(**asked, tool_choice="required").choices[0]
    told = [
        *ASKED,
        whole.model_dump(exclude_none=True),
        {
            "role": "tool",
            "tool_call_id": call.id,
            "content": rain_in(json.loads(call.function.arguments)["city"]),
        },
    ]
    reply = ask(model=MODEL, messages=told, temperature=0, max_tokens=FEW_TOKENS)
    return {
        "name": call.function.name,
        "arguments": call.function.arguments,
        "streamed_arguments": streamed.tool_calls[0].function.arguments,
        "streamed_name": streamed.tool_calls[0].function.name,
        "events": sorted(events),
        "required": [each.function.name for each in required.message.tool_calls or ()],
        "reason": required.finish_reason,
        "reply": reply.choices[0].message.content,
    }


def responses(api: openai.OpenAI) -> dict[str, Any]:
    """The same through the newer API."""
    asked: Any = {
        "model": MODEL,
        "temperature": 0,
        "input": ASKED,
        "max_output_tokens": MAX_TOKENS,
        "tools": [
            {"type": "function", "name": NAME, "description": DESCRIPTION, "parameters": SCHEMA}
        ],
        "tool_choice": "required",
    }
    whole: Any = api.responses.create(**asked)
    (call, *_) = [item for item in whole.output if item.type == "function_call"]
    with api.responses.stream(**asked) as streaming:
        events = {event.type for event in streaming}
        streamed: Any = streaming.get_final_response()
    told: Any = [
        *ASKED,
        call.model_dump(exclude_none=True),
        {
            "type": "function_call_output",
            "call_id": call.call_id,
            "output": rain_in(json.loads(call.arguments)["city"]),
        },
    ]
    reply = api.responses.create(
        model=MODEL, input=told, temperature=0, max_output_tokens=FEW_TOKENS
    )
    return {
        "arguments": [call.arguments for call in whole.output if call.type == "function_call"],
        "streamed": [call.arguments for call in streamed.output if call.type == "function_call"],
        "events": sorted(events),
        "reply": reply.output_text,
    }


def main() -> None:
    with openai.OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0) as api:
        tell(chat=chat(api), responses=responses(api))


if __name__ == "__main__":
    main()
