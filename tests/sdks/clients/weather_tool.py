"""The tool of the tool scripts: a grammar of its arguments leaves a small model two answers."""

from __future__ import annotations

from typing import Any, Literal

City = Literal["Ghent", "Lille"]
QUESTION = "How is the weather in Ghent?"
MAX_TOKENS = 120
FEW_TOKENS = 8
"""Of a reply that has read what the tool says."""
CITIES = ("Ghent", "Lille")
NAME = "weather"
DESCRIPTION = "How the weather is in a city."
SCHEMA: Any = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": list(CITIES)}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL: Any = {
    "type": "function",
    "function": {"name": NAME, "description": DESCRIPTION, "parameters": SCHEMA},
}
ASKED_FOR: list[str] = []
"""Cities that the tool was called with."""


def rain_in(city: str) -> str:
    """What the tool answers; keeps the city."""
    ASKED_FOR.append(city)
    return f"Rain in {city}."
