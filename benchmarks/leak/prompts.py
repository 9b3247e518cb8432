"""The prompts that an eavesdropper tries to tell apart."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from paceline.errors import ConfigError

MAX_CHARACTERS: Final = 3000
"""A longer prompt loses its end: what is measured are replies."""

PLACES: Final = ("Lisbon", "Oslo", "Lima", "Kyoto", "Accra", "Denver", "Turin")
GOODS: Final = ("lamp", "kettle", "backpack", "keyboard", "tent", "bicycle", "jacket")
TASKS: Final = (
    "Write a JSON object for each item in stock, with the keys name, price and city.",
    "Write the SQL query that lists every item below its average price, and explain it.",
    "Call the tool refund_order for the last order. Answer with the JSON of the call alone.",
    "Summarise this log for the customer in three sentences.",
    "Write a Python function that parses such a line and returns a dictionary.",
)


def read_prompts(folder: Path, count: int, *, seed: int) -> list[str]:
    """Prompts of every ``*.jsonl.gz`` in a folder, as many of each file as of the others.

    Each line is an object whose ``turns`` begin with the prompt.

    Raises:
        ConfigError: the folder holds no such file, or too few different prompts.
    """
    files = sorted(folder.glob("*.jsonl.gz"))
    if not files:
        raise ConfigError(f"{folder} holds no .jsonl.gz file; name a folder of prompts")
    rng = random.Random(seed)  # noqa: S311  a choice, not a secret
    piles = [list(_first_turns(path)) for path in files]
    for pile in piles:
        rng.shuffle(pile)
    dealt = itertools.chain.from_iterable(itertools.zip_longest(*piles))
    prompts = list(dict.fromkeys(prompt for prompt in dealt if prompt))[:count]
    if len(prompts) < count:
        raise ConfigError(
            f"{folder} holds {len(prompts)} different prompts, {count} are wanted; ask for fewer"
        )
    return prompts


def make_prompts(count: int, *, seed: int) -> list[str]:
    """Prompts as an agent in a shop puts them: records that it read, then a task."""
    rng = random.Random(seed)  # noqa: S311  a choice, not a secret
    return [_make_prompt(rng, TASKS[number % len(TASKS)]) for number in range(count)]


def _make_prompt(rng: random.Random, task: str) -> str:
    lines = [
        f"order={rng.randrange(10**6):06d} item={rng.choice(GOODS)} price={rng.randrange(5, 900)} "
        f"city={rng.choice(PLACES)}"
        for _ in range(6)
    ]
    return "\n".join(["You work for a web shop. The log says:", *lines, task])


def _first_turns(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                turn = json.loads(line)["turns"][0]
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise ConfigError(
                    f"{path}, line {number} has no turns to begin with ({error!r}); a line is an "
                    'object such as {"turns": ["the prompt"]}'
                ) from error
            yield str(turn)[:MAX_CHARACTERS]
