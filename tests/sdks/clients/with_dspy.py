"""DSPy's language model: asked plainly, and through a module."""

from __future__ import annotations

import asyncio
from typing import Any

import dspy
from asking import BASE_URL, KEY, MAX_TOKENS, MODEL, QUESTION, tell


class Plain(dspy.Adapter):
    """Gives the reply as it stands: so small a model does not keep to a form."""

    def format(self, _signature: Any, _demos: Any, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"role": "user", "content": inputs["question"]}]

    def parse(self, _signature: Any, completion: str) -> dict[str, Any]:
        return {"answer": completion}


async def streamed() -> tuple[list[str], str]:
    program = dspy.streamify(dspy.Predict("question -> answer"))
    pieces, answer = [], ""
    async for part in program(question=QUESTION):
        if isinstance(part, dspy.Prediction):
            answer = part.answer
        elif getattr(part, "choices", None):
            pieces.append(part.choices[0].delta.content or "")
    return pieces, answer


def main() -> None:
    lm = dspy.LM(
        f"openai/{MODEL}",
        api_base=BASE_URL,
        api_key=KEY,
        temperature=0,
        max_tokens=MAX_TOKENS,
        cache=False,
        num_retries=0,
    )
    dspy.configure(lm=lm, adapter=Plain(), track_usage=True)
    whole = lm(QUESTION)[0]
    usage = lm.history[-1]["usage"]
    answered = dspy.Predict("question -> answer")(question=QUESTION)
    pieces, streamed_answer = asyncio.run(streamed())
    tell(
        whole=whole,
        predicted=answered.answer,
        usage=[usage["prompt_tokens"], usage["completion_tokens"]],
        streamed="".join(pieces),
        streamed_answer=streamed_answer,
    )


if __name__ == "__main__":
    main()
