"""DSPy: its language model, and a module whose output is calls; the tool that is called runs.

DSPy reads a tool's annotations as they are: they must not be strings.
"""

from typing import Any

import dspy
from asking import BASE_URL, KEY, MODEL, tell
from weather_tool import ASKED_FOR, MAX_TOKENS, NAME, QUESTION, TOOL, City, rain_in

NAMED: Any = {"type": "function", "function": {"name": NAME}}


def weather(city: City) -> str:
    """How the weather is in a city."""
    return rain_in(city)


class CallingLM(dspy.LM):
    """Modules send tools only to models that DSPy knows to call them; it knows nobody's own."""

    supports_function_calling = True


class Asked(dspy.Signature):
    """Calls the tool that answers the question."""

    question: str = dspy.InputField()
    tools: list[dspy.Tool] = dspy.InputField()
    calls: dspy.ToolCalls = dspy.OutputField()


def main() -> None:
    lm = CallingLM(
        f"openai/{MODEL}",
        api_base=BASE_URL,
        api_key=KEY,
        temperature=0,
        max_tokens=MAX_TOKENS,
        cache=False,
        num_retries=0,
    )
    dspy.configure(lm=lm, adapter=dspy.ChatAdapter(use_native_function_calling=True))
    plain = lm(QUESTION, tools=[TOOL], tool_choice=NAMED)[0]["tool_calls"]
    tool = dspy.Tool(weather)
    rider = dspy.Predict(Asked)
    told = rider(question=QUESTION, tools=[tool], config={"tool_choice": "required"})
    calls = told.calls.tool_calls
    tell(
        plain=[[call["function"]["name"], call["function"]["arguments"]] for call in plain],
        calls=[call.name for call in calls],
        done=[tool(**call.args) for call in calls],
        cities=ASKED_FOR,
    )


if __name__ == "__main__":
    main()
