"""A tool-calling agent of smolagents: every step has to be a call."""

from __future__ import annotations

from asking import BASE_URL, KEY, MODEL, tell
from smolagents import OpenAIModel, ToolCallingAgent, tool
from weather_tool import ASKED_FOR, MAX_TOKENS, QUESTION, City, rain_in


@tool
def weather(city: City) -> str:
    """How the weather is in a city.

    Args:
        city: its name.
    """
    return rain_in(city)


def main() -> None:
    model = OpenAIModel(
        model_id=MODEL, api_base=BASE_URL, api_key=KEY, temperature=0, max_tokens=MAX_TOKENS
    )
    agent = ToolCallingAgent(tools=[weather], model=model, max_steps=1, verbosity_level=-1)
    agent.run(QUESTION)
    step = next(each for each in agent.memory.get_full_steps() if "tool_calls" in each)
    tell(
        calls=[call["function"]["name"] for call in step["tool_calls"] or ()],
        error=step["error"],
        cities=ASKED_FOR,
    )


if __name__ == "__main__":
    main()
