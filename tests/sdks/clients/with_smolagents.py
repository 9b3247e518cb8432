"""smolagents' model, whole and streamed, with a tool on offer, and one step of an agent."""

from __future__ import annotations

from typing import Any

from asking import BASE_URL, ENDLESS, KEY, MAX_TOKENS, MESSAGES, MODEL, QUESTION, leave, tell
from smolagents import CodeAgent, OpenAIModel


def model(max_tokens: int = MAX_TOKENS) -> OpenAIModel:
    return OpenAIModel(
        model_id=MODEL, api_base=BASE_URL, api_key=KEY, temperature=0, max_tokens=max_tokens
    )


def main() -> None:
    whole = model().generate(MESSAGES)
    deltas = list(model().generate_stream(MESSAGES))
    agent = CodeAgent(tools=[], model=model(), max_steps=1, verbosity_level=-1)
    agent.run(QUESTION)
    steps = [step for step in agent.memory.get_full_steps() if "step_number" in step]

    def opened() -> Any:
        asked = model(ENDLESS)
        stream = asked.generate_stream(MESSAGES)
        next(stream)
        return asked.client.close  # closing the generator leaves the connection to the collector

    assert whole.token_usage is not None
    tell(
        whole=whole.content,
        streamed="".join(delta.content or "" for delta in deltas),
        usage=[whole.token_usage.input_tokens, whole.token_usage.output_tokens],
        streamed_usage=[
            sum(d.token_usage.input_tokens for d in deltas if d.token_usage),
            sum(d.token_usage.output_tokens for d in deltas if d.token_usage),
        ],
        agent_steps=[step["model_output"] for step in steps],
        left=leave(opened),
    )


if __name__ == "__main__":
    main()
