"""Vectors through the openai SDK: as it asks by itself, as floats, of several texts, of tokens."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
from asking import BASE_URL, KEY, MODEL, tell

TEXTS = ["A grey heron waits.", "The clock on the wall is slow."]
TOKENS = [[504, 3224], [1, 2, 3]]


async def later() -> list[list[float]]:
    async with openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0) as api:
        told = await asyncio.gather(
            *(api.embeddings.create(model=MODEL, input=text) for text in TEXTS)
        )
    return [each.data[0].embedding for each in told]


def main() -> None:
    with openai.OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0) as api:
        ask: Any = api.embeddings.create
        plain = ask(model=MODEL, input=TEXTS)  # it asks for base64 and gives floats
        floats = ask(model=MODEL, input=TEXTS, encoding_format="float")
        of_tokens = ask(model=MODEL, input=TOKENS)
        refused = []
        for wrong in ({"dimensions": 8}, {"input": []}):
            try:
                ask(**{"model": MODEL, "input": TEXTS} | wrong)
            except openai.BadRequestError as error:
                refused.append(error.message)
    tell(
        plain=[each.embedding for each in plain.data],
        floats=[each.embedding for each in floats.data],
        later=asyncio.run(later()),
        usage=[plain.usage.prompt_tokens, plain.usage.total_tokens],
        of_tokens=[each.embedding for each in of_tokens.data],
        tokens_usage=of_tokens.usage.prompt_tokens,
        refused=refused,
    )


if __name__ == "__main__":
    main()
