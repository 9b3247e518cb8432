"""Reading recorded agent traces from a folder that the caller names."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from paceline.errors import ConfigError

NOT_SAID_BY_A_MODEL = ("canned", "context", "demo")


class Tokenizer(Protocol):
    """What a cut to a number of tokens needs."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`."""

    def decode(self, token_ids: list[int]) -> str:
        """Text of `token_ids`."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it is put before the model: tool calls are part of the text."""

    role: str
    content: str

    def as_json(self) -> dict[str, str]:
        """The message in the shape of the chat API."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Episode:
    """One recorded run of an agent.

    Attributes:
        source: name of the trace file.
        model: model that the agent used.
        episode_id: id within the source.
        contexts: the messages before each recorded reply, in order.
    """

    source: str
    model: str
    episode_id: str
    contexts: tuple[tuple[Message, ...], ...]


@dataclass(frozen=True, slots=True)
class RecordedMessage:
    """One message as it was recorded. A model's reasoning is not part of it.

    Attributes:
        role: system, user, assistant or tool.
        content: its text, empty where none is recorded.
        tool_calls: each call as ``<tool_call>`` JSON with the recorded argument string.
        measured: whether a model said it in reply to the messages before it.
    """

    role: str
    content: str
    tool_calls: tuple[str, ...]
    measured: bool

    @property
    def body(self) -> str:
        """Content, then the calls, joined by line ends, also where the content is empty."""
        return "\n".join((self.content, *self.tool_calls))


@dataclass(frozen=True, slots=True)
class RecordedEpisode:
    """One row of a trace file.

    Attributes:
        source: name of the trace file.
        model: model that the agent used.
        episode_id: id within the source.
        session_id: what ties episodes of one session together; the episode's id where none is
            recorded.
        task_group: the task that was worked on; the episode's id where none is recorded.
        messages: in order.
    """

    source: str
    model: str
    episode_id: str
    session_id: str
    task_group: str
    messages: tuple[RecordedMessage, ...]


def read_recorded(folder: Path, source: str) -> Iterator[RecordedEpisode]:
    """Rows of `folder/source.jsonl.gz` in file order.

    Raises:
        ConfigError: there is no such file.
    """
    path = folder / f"{source}.jsonl.gz"
    if not path.is_file():
        known = ", ".join(
            sorted(p.name.removesuffix(".jsonl.gz") for p in folder.glob("*.jsonl.gz"))
        )
        raise ConfigError(f"{path} does not exist; the sources in {folder} are: {known or 'none'}")
    with gzip.open(path, "rt", encoding="utf-8", errors="surrogatepass") as lines:
        for line in lines:
            row = json.loads(line)
            episode_id = row["episode_id"]
            yield RecordedEpisode(
                source=source,
                model=row["model"],
                episode_id=episode_id,
                session_id=row.get("session_id") or episode_id,
                task_group=row.get("task_group") or episode_id,
                messages=tuple(map(_recorded_message, row["messages"])),
            )


def read_episodes(folder: Path, source: str) -> Iterator[Episode]:
    """Episodes of `folder/source.jsonl.gz` in file order.

    Raises:
        ConfigError: there is no such file.
    """
    for recorded in read_recorded(folder, source):
        messages = tuple(
            Message(m.role, "\n".join(part for part in (m.content, *m.tool_calls) if part))
            for m in recorded.messages
        )
        contexts = tuple(messages[:i] for i, m in enumerate(recorded.messages) if m.measured)
        yield Episode(source, recorded.model, recorded.episode_id, contexts)


def cut(messages: tuple[Message, ...], tokenizer: Tokenizer, *, max_tokens: int) -> list[Message]:
    """The messages that fit `max_tokens`: the leading system message, then the newest ones.

    The system message gets at most half of them; the oldest message kept loses its beginning. Role
    markers are not counted.
    """
    system = [m for m in messages[:1] if m.role == "system"]
    kept_system = [Message("system", _head(m.content, tokenizer, max_tokens // 2)) for m in system]
    room = max_tokens - sum(_length(m.content, tokenizer) for m in kept_system)
    kept: list[Message] = []
    for message in reversed(messages[len(system) :]):
        token_ids = tokenizer.encode(message.content, add_special_tokens=False)
        if len(token_ids) > room:
            if room > 0:
                kept.append(Message(message.role, tokenizer.decode(token_ids[-room:])))
            break
        room -= len(token_ids)
        kept.append(message)
    return kept_system + kept[::-1]


def _recorded_message(row: dict[str, Any]) -> RecordedMessage:
    said = row["role"] == "assistant" and not any(row.get(flag) for flag in NOT_SAID_BY_A_MODEL)
    content = row.get("content") or ""
    calls = tuple(map(_call, row.get("tool_calls") or ()))
    return RecordedMessage(row["role"], content, calls, said and bool(content or calls))


def _call(call: dict[str, Any]) -> str:
    function = call.get("function", call)
    arguments = function["arguments"]
    name = json.dumps(function["name"])
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return f'<tool_call>\n{{"name": {name}, "arguments": {text}}}\n</tool_call>'


def _length(text: str, tokenizer: Tokenizer) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False))


def _head(text: str, tokenizer: Tokenizer, max_tokens: int) -> str:
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    return text if len(token_ids) <= max_tokens else tokenizer.decode(token_ids[:max_tokens])
