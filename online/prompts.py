"""Prompts for the target to answer: chats and texts in JSON lines, some sessions held out.

A chat that holds replies of its own gives a prompt for each of them, what was said before it.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import msgspec

from paceline.errors import ConfigError

SESSION_FIELDS: Final = ("session_id", "episode_id", "id")
TEXT_FIELDS: Final = ("prompt", "text")
ASSISTANT: Final = "assistant"


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the target is asked.

    Attributes:
        session: prompts of one session are held out together, or not at all.
        messages: of a chat, or one of the user's that is a text.
    """

    session: str
    messages: tuple[dict[str, Any], ...]


def read_prompts(files: Sequence[Path]) -> list[Prompt]:
    """Prompts of all files, in their order. O(bytes).

    A line's session is its `session_id`, `episode_id` or `id`; one without is its own.

    Raises:
        ConfigError: a file is missing or cannot be read, a line is not JSON or has neither chat nor
            text, or there is no prompt at all.
    """
    prompts = [prompt for file in files for prompt in _of_file(file)]
    if not prompts:
        raise ConfigError(f"no prompt was found in {', '.join(map(str, files))}")
    return prompts


def split(
    prompts: Sequence[Prompt], *, held_out_share: float, seed: int
) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to learn from and held-out ones, each in an order that `seed` alone decides.

    Raises:
        ConfigError: one of the two is empty.
    """
    train: list[Prompt] = []
    held_out: list[Prompt] = []
    for prompt in prompts:
        (held_out if is_held_out(prompt.session, held_out_share) else train).append(prompt)
    if not train or not held_out:
        sessions = len({prompt.session for prompt in prompts})
        raise ConfigError(
            f"of {sessions} sessions a share of {held_out_share} leaves {len(train)} prompts to "
            f"learn from and {len(held_out)} held out; give more sessions, or another "
            "--held-out-share"
        )
    for i, part in enumerate((train, held_out)):
        random.Random(seed * 2 + i).shuffle(part)  # noqa: S311  an order, no secret
    return train, held_out


def prompt_tokens(prompts: Sequence[Prompt], tokenizer: Any, *, max_tokens: int) -> list[list[int]]:
    """Tokens that the target reads: its chat template, or the texts alone where it has none.

    Of more than `max_tokens` the first quarter stays and the end.

    Raises:
        ConfigError: a prompt has no token.
    """
    if tokenizer.chat_template:
        # all at once: the tokenizer splits them over its threads
        rendered = tokenizer.apply_chat_template(
            [list(prompt.messages) for prompt in prompts],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
        )
    else:
        texts = ["\n".join(m["content"] for m in prompt.messages) for prompt in prompts]
        rendered = tokenizer(texts, verbose=False)
    return [
        _cut(prompt, token_ids, max_tokens)
        for prompt, token_ids in zip(prompts, rendered["input_ids"], strict=True)
    ]


def _cut(prompt: Prompt, token_ids: Sequence[int], max_tokens: int) -> list[int]:
    if not token_ids:
        raise ConfigError(f"a prompt of session {prompt.session} is empty; leave it out")
    if len(token_ids) <= max_tokens:
        return list(token_ids)
    head = max_tokens // 4
    return [*token_ids[:head], *token_ids[head - max_tokens :]]


def is_held_out(session: str, share: float) -> bool:
    """Whether a session is kept to measure by: the same one always, whoever asks, at this share."""
    digest = blake2b(session.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def _of_file(file: Path) -> Iterator[Prompt]:
    opener = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.isspace():
                    yield from _of_line(bytes(line), f"{file}, line {number}")
    except (OSError, EOFError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); give a file of JSON lines") from error


def _of_line(line: bytes, where: str) -> Iterator[Prompt]:
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where} is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{where} is no JSON object; give messages, prompt or text in one")
    named = next((row[name] for name in SESSION_FIELDS if row.get(name)), None)
    session = blake2b(line, digest_size=8).hexdigest() if named is None else str(named)
    text = next((row[name] for name in TEXT_FIELDS if isinstance(row.get(name), str)), None)
    if isinstance(row.get("messages"), list):
        yield from _of_chat(session, row["messages"], where)
    elif text and not text.isspace():
        yield Prompt(session, ({"role": "user", "content": text},))
    else:
        raise ConfigError(f"{where} has neither messages nor prompt nor text")


def _of_chat(session: str, messages: list[Any], where: str) -> Iterator[Prompt]:
    said: list[dict[str, Any]] = []
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ConfigError(f"{where} has a message without a role")
        if message["role"] == ASSISTANT and said:
            yield Prompt(session, tuple(said))
        said.append({**message, "content": message.get("content") or ""})
    if said and said[-1]["role"] != ASSISTANT:
        yield Prompt(session, tuple(said))
