"""smolagents: an agent that writes code, two steps at most.

pip install 'smolagents[openai]'
python examples/smolagents_agent.py
"""

import os

from smolagents import CodeAgent, OpenAIModel, tool

BASE_URL = os.environ.get("PACELINE_URL", "http://127.0.0.1:8080/v1")
KEY = os.environ.get("PACELINE_KEY", "local")
MODEL = os.environ.get("PACELINE_MODEL", "smollm2")


@tool
def weather(city: str) -> str:
    """How the weather is in a city.

    Args:
        city: its name.
    """
    return f"Rain in {city}, wind from the west."


def main() -> None:
    model = OpenAIModel(
        model_id=MODEL,
        api_base=BASE_URL,
        api_key=KEY,
        client_kwargs={"default_headers": {"x-session-id": "tour"}},
        temperature=0,
        max_tokens=40,
    )
    agent = CodeAgent(tools=[weather], model=model, max_steps=2, verbosity_level=1)
    agent.run("How is the weather in Ghent?")
    usage = agent.monitor.get_total_token_counts()
    print(f"[{usage.input_tokens} tokens read, {usage.output_tokens} said]")


if __name__ == "__main__":
    main()
