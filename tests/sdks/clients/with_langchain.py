"""LangChain's chat model and a LangGraph agent that has a tool."""

from __future__ import annotations

import asyncio
from typing import Any

from asking import BASE_URL, ENDLESS, KEY, MAX_TOKENS, MODEL, QUESTION, leave, leave_later, tell
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def weather(city: str) -> str:
    """How the weather is in a city."""
    return f"Rain in {city}."


def model(max_tokens: int = MAX_TOKENS) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=BASE_URL,
        api_key=KEY,
        model=MODEL,
        temperature=0,
        max_completion_tokens=max_tokens,
        max_retries=0,
        default_headers={"x-session-id": "rivers"},
    )


async def left_later() -> list[tuple[float, float]]:
    async def opened() -> Any:
        stream = model(ENDLESS).astream(QUESTION)
        await anext(stream)
        return stream.aclose

    return await leave_later(opened)


def counted(message: Any) -> list[int]:
    return [message.usage_metadata["input_tokens"], message.usage_metadata["output_tokens"]]


def main() -> None:
    whole = model().invoke(QUESTION)
    streamed: Any = None
    for chunk in model().stream(QUESTION, stream_usage=True):
        streamed = chunk if streamed is None else streamed + chunk
    asked: Any = {"messages": [{"role": "user", "content": QUESTION}]}
    agent = create_agent(model(), tools=[weather])
    answered = agent.invoke(asked)["messages"]
    pieces = [piece for piece, _ in agent.stream(asked, stream_mode="messages")]

    def opened() -> Any:
        stream = model(ENDLESS).stream(QUESTION)
        next(stream)
        return stream.close

    tell(
        whole=whole.content,
        streamed=streamed.content,
        finish_reasons=[each.response_metadata["finish_reason"] for each in (whole, streamed)],
        usage=counted(whole),
        streamed_usage=counted(streamed),
        agent=answered[-1].content,
        agent_streamed="".join(str(piece.content) for piece in pieces),
        agent_roles=[message.type for message in answered],
        left=leave(opened),
        left_later=asyncio.run(left_later()),
    )


if __name__ == "__main__":
    main()
