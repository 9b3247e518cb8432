"""A LangGraph graph: a forced call, the tool, and the reply that has read its result."""

from __future__ import annotations

from typing import Any

from asking import BASE_URL, KEY, MODEL, tell
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from weather_tool import ASKED_FOR, FEW_TOKENS, MAX_TOKENS, QUESTION, City, rain_in


@tool
def weather(city: City) -> str:
    """How the weather is in a city."""
    return rain_in(city)


MODEL_OF_OURS: Any = ChatOpenAI(
    base_url=BASE_URL,
    api_key=KEY,
    model=MODEL,
    temperature=0,
    max_completion_tokens=MAX_TOKENS,
    max_retries=0,
)


def forced() -> Any:
    return MODEL_OF_OURS.bind_tools([weather], tool_choice="weather")


def call(state: MessagesState) -> Any:
    return {"messages": [forced().invoke(state["messages"])]}


def answer(state: MessagesState) -> Any:
    short = MODEL_OF_OURS.bind(max_completion_tokens=FEW_TOKENS)
    return {"messages": [short.invoke(state["messages"])]}


def main() -> None:
    graph = StateGraph(MessagesState)
    graph.add_node("call", call)
    graph.add_node("tools", ToolNode([weather]))
    graph.add_node("answer", answer)
    for begin, end in ((START, "call"), ("call", "tools"), ("tools", "answer"), ("answer", END)):
        graph.add_edge(begin, end)
    asked: Any = {"messages": [{"role": "user", "content": QUESTION}]}
    messages = graph.compile().invoke(asked)["messages"]
    cities = list(ASKED_FOR)
    streamed: Any = None
    for piece in forced().stream(QUESTION):
        streamed = piece if streamed is None else streamed + piece
    tell(
        roles=[message.type for message in messages],
        tool=messages[2].content,
        reply=messages[-1].content,
        cities=cities,
        streamed=[call["args"] for call in streamed.tool_calls],
    )


if __name__ == "__main__":
    main()
