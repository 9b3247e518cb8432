"""LlamaIndex: required calls, whole and streamed, the tool that is run, and the reply to it.

LlamaIndex reads the tool's annotations as they are: they must not be strings.
"""

from typing import Any

from asking import BASE_URL, KEY, MODEL, tell
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from weather_tool import ASKED_FOR, FEW_TOKENS, MAX_TOKENS, QUESTION, City, rain_in


def weather(city: City) -> str:
    """How the weather is in a city."""
    return rain_in(city)


def model(max_tokens: int) -> OpenAILike:
    return OpenAILike(
        model=MODEL,
        api_base=BASE_URL,
        api_key=KEY,
        temperature=0,
        max_tokens=max_tokens,
        max_retries=0,
        is_chat_model=True,
        is_function_calling_model=True,
    )


def main() -> None:
    asks = model(MAX_TOKENS)
    tools: list[Any] = [FunctionTool.from_defaults(weather)]
    called = asks.chat_with_tools(tools, user_msg=QUESTION, tool_required=True)
    calls = asks.get_tool_calls_from_response(called)
    *_, last = asks.stream_chat_with_tools(tools, user_msg=QUESTION, tool_required=True)
    streamed = asks.get_tool_calls_from_response(last)
    done = [str(tools[0].call(**call.tool_kwargs)) for call in calls]
    results = [
        ChatMessage(role="tool", content=text, additional_kwargs={"tool_call_id": call.tool_id})
        for text, call in zip(done, calls, strict=True)
    ]
    asked = ChatMessage(role="user", content=QUESTION)
    reply = model(FEW_TOKENS).chat([asked, called.message, *results])
    tell(
        calls=[call.tool_name for call in calls],
        streamed=[call.tool_name for call in streamed],
        done=done,
        cities=ASKED_FOR,
        reply=reply.message.content,
    )


if __name__ == "__main__":
    main()
