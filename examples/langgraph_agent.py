"""LangGraph: an agent with a tool, in two conversations that share what it has said before.

pip install langchain langchain-openai langgraph
python examples/langgraph_agent.py
"""

import os

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

BASE_URL = os.environ.get("PACELINE_URL", "http://127.0.0.1:8080/v1")
KEY = os.environ.get("PACELINE_KEY", "local")
MODEL = os.environ.get("PACELINE_MODEL", "smollm2")


@tool
def weather(city: str) -> str:
    """How the weather is in a city."""
    return f"Rain in {city}, wind from the west."


def main() -> None:
    for session in ("monday", "tuesday"):
        model = ChatOpenAI(
            base_url=BASE_URL,
            api_key=KEY,
            model=MODEL,
            temperature=0,
            max_completion_tokens=40,
            default_headers={"x-session-id": session},
        )
        agent = create_agent(model, tools=[weather], system_prompt="You are brief.")
        question = {"role": "user", "content": "How do riders share the work at the front?"}
        print(f"[{session}] ", end="")
        for piece, _ in agent.stream({"messages": [question]}, stream_mode="messages"):
            print(piece.content, end="", flush=True)
        print()


if __name__ == "__main__":
    main()
