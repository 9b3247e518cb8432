"""Prompts of agents and of single questions, in tokens."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from paceline.benchmarks.rendering import cut_prompt, requests_of
from paceline.benchmarks.replay.tokens import Renderer
from paceline.benchmarks.traces import read_recorded
from paceline.errors import ConfigError

PROMPTS_FOLDER: Final = "prompts"
"""Of a traces' folder: single questions, ``SOURCE.jsonl.gz`` with ``id`` and ``turns`` a line."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one request asks.

    Attributes:
        source: name of the file.
        session: what ties the turns of one conversation together.
        turn: which of the conversation's turns.
        token_ids: int, at least one.
    """

    source: str
    session: str
    turn: int
    token_ids: tuple[int, ...]


def read_prompts(
    folder: Path,
    source: str,
    renderer: Renderer,
    *,
    num_prompts: int,
    num_turns: int,
    context_tokens: int,
) -> list[Prompt]:
    """Prompts of one source: the first turns of all conversations, then the second ones.

    Args:
        folder: of traces.
        source: a trace file, or a file of questions in the folder's ``prompts``.
        renderer: how messages become tokens.
        num_prompts: how many.
        num_turns: taken of each conversation where it has as many; a question has one.
        context_tokens: longest prompt; see `cut_prompt`.

    Raises:
        ConfigError: there is no such file, or it holds fewer prompts.
    """
    questions = folder / PROMPTS_FOLDER / f"{source}.jsonl.gz"
    if questions.is_file():
        prompts = _questions(questions, source, renderer, num_prompts, context_tokens)
    else:
        found = _turns(folder, source, renderer, num_turns, context_tokens)
        prompts = list(islice(found, num_prompts))
        prompts.sort(key=lambda prompt: prompt.turn)
    if len(prompts) < num_prompts:
        raise ConfigError(
            f"{source} holds {len(prompts)} prompts, {num_prompts} are wanted; take fewer "
            "(--prompts) or more turns of each conversation (--turns)"
        )
    return prompts


def _turns(
    folder: Path, source: str, renderer: Renderer, num_turns: int, context_tokens: int
) -> Iterator[Prompt]:
    for episode in read_recorded(folder, source):
        for request in requests_of(
            episode,
            renderer,
            context_tokens=context_tokens,
            output_tokens=1,
            max_requests=num_turns,
        ):
            yield Prompt(source, request.session_id, request.turn, request.prompt_ids)


def _questions(
    file: Path, source: str, renderer: Renderer, num_prompts: int, context_tokens: int
) -> list[Prompt]:
    """Evenly from the whole file, whose kinds of questions come one after the other."""
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    frame = renderer.frame
    picked = [rows[i * len(rows) // num_prompts] for i in range(min(num_prompts, len(rows)))]
    prompts = []
    for row in picked:
        body = renderer.encode([row["turns"][0]])[0].tolist()
        asked = [*frame.headers["user"].tolist(), *body, frame.end, *frame.tail.tolist()]
        header = frame.headers["assistant"].tolist()
        token_ids = [*cut_prompt([], asked, context_tokens - len(header)), *header]
        prompts.append(Prompt(source, row["id"], 0, tuple(token_ids)))
    return prompts
