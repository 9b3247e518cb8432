"""LlamaIndex: required calls, whole and streamed, the tool that is run, and the reply to it.

LlamaIndex reads the tool's annotations as they are: they must not be strings.
"""

import json
from typing import Any

from asking import BASE_URL, KEY, MODEL, tell
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from weather_tool import ASKED_FOR, FEW_TOKENS, MAX_TOKENS, QUESTION, City, rain_in

MOST_STREAMS = 5


def weather(city: City) -> str:
    """How the weather is in a city."""
    return rain_in(city)


def model(max_tokens: int, **headers: str) -> OpenAILike:
    return OpenAILike(
        model=MODEL,
        api_base=BASE_URL,
        api_key=KEY,
        temperature=0,
        max_tokens=max_tokens,
        max_retries=0,
        is_chat_model=True,
        is_function_calling_model=True,
        default_headers=headers,
    )


def streamed_call(asks: OpenAILike, tools: list[Any]) -> dict[str, Any]:
    """A required call as the stream tells it, beside what LlamaIndex makes of it."""
    told, firsts, in_one, last = "", "", 0, None
    for piece in asks.stream_chat_with_tools(tools, user_msg=QUESTION, tool_required=True):
        # read now: LlamaIndex goes on to write into the first of them
        choices = piece.raw.choices
        deltas = (choices[0].delta.tool_calls or []) if choices else []
        arguments = [delta.function.arguments or "" for delta in deltas]
        told += "".join(arguments)
        firsts += "".join(arguments[:1])
        in_one, last = max(in_one, len(arguments)), piece
    assert last is not None
    (block,) = (each for each in last.message.blocks if each.block_type == "tool_call")
    (call,) = asks.get_tool_calls_from_response(last)
    return {
        "name": call.tool_name,
        "told": told,
        "firsts": firsts,
        "most_in_one": in_one,
        "kept": block.tool_kwargs or "",
        "read": json.dumps(call.tool_kwargs),
    }


def streamed_singly(tools: list[Any]) -> dict[str, Any]:
    """The same without drafts, anew where an engine that was held up sent two tokens at once."""
    asks = model(MAX_TOKENS, **{"x-paceline-speculation": "off"})
    streams = (streamed_call(asks, tools) for _ in range(MOST_STREAMS))
    return next(each for each in streams if each["most_in_one"] == 1)


def main() -> None:
    asks = model(MAX_TOKENS)
    tools: list[Any] = [FunctionTool.from_defaults(weather)]
    called = asks.chat_with_tools(tools, user_msg=QUESTION, tool_required=True)
    calls = asks.get_tool_calls_from_response(called)
    done = [str(tools[0].call(**call.tool_kwargs)) for call in calls]
    results = [
        ChatMessage(role="tool", content=text, additional_kwargs={"tool_call_id": call.tool_id})
        for text, call in zip(done, calls, strict=True)
    ]
    asked = ChatMessage(role="user", content=QUESTION)
    reply = model(FEW_TOKENS).chat([asked, called.message, *results])
    tell(
        calls=[call.tool_name for call in calls],
        streamed=streamed_call(asks, tools),
        streamed_singly=streamed_singly(tools),
        done=done,
        cities=ASKED_FOR,
        reply=reply.message.content,
    )


if __name__ == "__main__":
    main()
