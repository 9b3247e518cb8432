"""CrewAI's model: a required call, whole and streamed, for which it runs the tool itself.

Tools that an agent or a call is given are always optional to the model. Those of the model's own
settings are sent as they stand.
"""

from __future__ import annotations

from typing import Any

from asking import BASE_URL, KEY, MODEL, tell
from crewai import LLM
from crewai.events import crewai_event_bus
from weather_tool import ASKED_FOR, MAX_TOKENS, NAME, QUESTION, TOOL, rain_in


def model(*, stream: bool) -> LLM:
    forced: Any = {"tools": [TOOL], "tool_choice": "required"}
    return LLM(
        model=MODEL,
        provider="openai",
        base_url=BASE_URL,
        api_key=KEY,
        temperature=0,
        max_tokens=MAX_TOKENS,
        stream=stream,
        additional_params=forced,
    )


def main() -> None:
    functions = {NAME: rain_in}
    done = [
        model(stream=stream).call(QUESTION, available_functions=functions)
        for stream in (False, True)
    ]
    crewai_event_bus.flush()  # it prints what it does, from threads of its own
    tell(done=done, cities=ASKED_FOR)


if __name__ == "__main__":
    main()
