"""Forced tool calls through the anthropic SDK, whole and streamed, and their result sent back."""

from __future__ import annotations

from typing import Any

import anthropic
from asking import BASE_URL, KEY, MODEL, tell
from weather_tool import DESCRIPTION, FEW_TOKENS, MAX_TOKENS, NAME, QUESTION, SCHEMA, rain_in

ASKED: Any = {
    "model": MODEL,
    "max_tokens": MAX_TOKENS,
    "messages": [{"role": "user", "content": QUESTION}],
    "tools": [{"name": NAME, "description": DESCRIPTION, "input_schema": SCHEMA}],
    "extra_body": {"temperature": 0},
}


def calls_of(message: anthropic.types.Message) -> list[Any]:
    return [block for block in message.content if block.type == "tool_use"]


def main() -> None:
    root = BASE_URL.removesuffix("/v1")
    with anthropic.Anthropic(base_url=root, api_key=KEY, max_retries=0) as api:
        whole = api.messages.create(**ASKED, tool_choice={"type": "tool", "name": NAME})
        call = calls_of(whole)[0]
        with api.messages.stream(**ASKED, tool_choice={"type": "any"}) as streaming:
            events = {event.type for event in streaming}
            streamed = streaming.get_final_message()
        result = {
            "type": "tool_result",
            "tool_use_id": call.id,
            "content": rain_in(call.input["city"]),
        }
        reply: Any = api.messages.create(
            model=MODEL,
            max_tokens=FEW_TOKENS,
            messages=[
                *ASKED["messages"],
                {"role": "assistant", "content": [call.model_dump(exclude_none=True)]},
                {"role": "user", "content": [result]},
            ],
            extra_body={"temperature": 0},
        )
        tell(
            name=call.name,
            input=call.input,
            reasons=[whole.stop_reason, streamed.stop_reason],
            streamed=[each.input for each in calls_of(streamed)],
            events=sorted(events),
            reply="".join(getattr(block, "text", "") for block in reply.content),
        )


if __name__ == "__main__":
    main()
