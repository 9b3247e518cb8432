"""CrewAI's model, and an agent of it."""

from __future__ import annotations

from asking import BASE_URL, KEY, MAX_TOKENS, MODEL, QUESTION, tell
from crewai import LLM, Agent, Crew, Task
from crewai.tools import tool


@tool("weather")
def weather(city: str) -> str:
    """How the weather is in a city."""
    return f"Rain in {city}."


def model(*, stream: bool = False) -> LLM:
    return LLM(
        model=MODEL,
        provider="openai",
        base_url=BASE_URL,
        api_key=KEY,
        temperature=0,
        max_tokens=MAX_TOKENS,
        stream=stream,
    )


def main() -> None:
    whole = model().call(QUESTION)
    streamed = model(stream=True).call(QUESTION)
    rider = Agent(
        role="rider", goal="to answer", backstory="You are brief.", llm=model(), tools=[weather]
    )
    task = Task(description=QUESTION, expected_output="a list", agent=rider)
    done = Crew(agents=[rider], tasks=[task], verbose=False).kickoff()
    tell(
        whole=whole,
        streamed=streamed,
        crew=done.raw,
        usage=[done.token_usage.prompt_tokens, done.token_usage.completion_tokens],
    )


if __name__ == "__main__":
    main()
