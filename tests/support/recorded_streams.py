"""What a real vLLM answered through each of its parsers: recorded bytes, and what they say."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import yaml

FOLDER: Final = Path(__file__).parents[1] / "vllm" / "streams"
FORMS: Final = FOLDER / "forms.yaml"
RECORDED: Final = FOLDER / "recorded.jsonl.xz"

CHAT: Final = "/v1/chat/completions"
MESSAGES: Final = "/v1/messages"
RESPONSES: Final = "/v1/responses"

Kind = Literal["tool", "reasoning", "both"]
Usage = Literal["", "last", "each"]


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """How an answer was asked for.

    Attributes:
        path: of the endpoint.
        stream: whether in pieces.
        ids: whether with token ids.
        usage: of a stream: in no chunk, in the last, in each.
        interval: tokens to a chunk, at least.
    """

    path: str = CHAT
    stream: bool = True
    ids: bool = False
    usage: Usage = ""
    interval: int = 1

    @property
    def fields(self) -> dict[str, Any]:
        """What stands in the request for it."""
        options = {
            "": {},
            "last": {"stream_options": {"include_usage": True}},
            "each": {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        }
        fields: dict[str, Any] = {"stream": self.stream, **options[self.usage]}
        if self.ids:
            fields["return_token_ids"] = True
        if self.interval > 1:
            fields["stream_interval"] = self.interval
        return fields

    @classmethod
    def of_body(cls, path: str, body: dict[str, Any]) -> Asked:
        """How a request asks."""
        options = body.get("stream_options") or {}
        at_end = bool(options.get("include_usage"))
        in_each = at_end and bool(options.get("continuous_usage_stats"))
        return cls(
            path=path,
            stream=bool(body.get("stream")),
            ids=bool(body.get("return_token_ids")),
            usage="each" if in_each else "last" if at_end else "",
            interval=body.get("stream_interval") or 1,
        )


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """One answer.

    Attributes:
        kind: which parser was set: of tool calls, of reasoning, or one of each name.
        parser: its name.
        asked: how.
        content_type: as the head says.
        chunks: the body as it came, chunk for chunk of HTTP's chunked encoding; one for a whole.
    """

    kind: Kind
    parser: str
    asked: Asked
    content_type: str
    chunks: list[str]

    @property
    def body(self) -> bytes:
        return "".join(self.chunks).encode()


def read_forms() -> dict[str, Any]:
    """`FORMS`."""
    forms: dict[str, Any] = yaml.safe_load(FORMS.read_text(encoding="utf-8"))
    return forms


def read_recordings() -> Iterator[Recording]:
    """All of `RECORDED`."""
    decoder = msgspec.json.Decoder(Recording)
    with lzma.open(RECORDED) as file:
        for line in file:
            yield decoder.decode(line)


def write_recordings(recordings: Iterable[Recording]) -> None:
    """Replace `RECORDED`; the same recordings give the same bytes."""
    lines = b"".join(msgspec.json.encode(each) + b"\n" for each in recordings)
    RECORDED.write_bytes(lzma.compress(lines, preset=9 | lzma.PRESET_EXTREME))


class Said(msgspec.Struct):
    """What an answer says, put together from its pieces."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, Any]] = []


def payloads_of(recording: Recording) -> list[dict[str, Any]]:
    """A chat's chunks, decoded; what vLLM tells of an error of its own is one too."""
    if not recording.asked.stream:
        return [json.loads(recording.body)]
    events = recording.body.decode().split("\n\n")
    return [json.loads(event[len("data: ") :]) for event in events if event.startswith("data: {")]


def ids_in_chat(recording: Recording) -> list[int]:
    """The token ids of what was said, as far as an answer tells them."""
    choices = [choice for each in payloads_of(recording) for choice in each.get("choices", ())]
    return [token_id for choice in choices for token_id in choice.get("token_ids") or ()]


def said_in_chat(recording: Recording) -> Said:
    """What a chat's answer says; arguments of its calls are decoded if they are JSON."""
    choices = [choice for each in payloads_of(recording) for choice in each.get("choices", ())]
    told = Said()
    calls: dict[int, list[str]] = {}
    for choice in choices:
        delta = choice["delta" if recording.asked.stream else "message"]
        told.content += delta.get("content") or ""
        told.reasoning += delta.get("reasoning") or ""
        for number, call in enumerate(delta.get("tool_calls") or ()):
            name, arguments = calls.setdefault(call.get("index", number), ["", ""])
            function = call.get("function") or {}
            calls[call.get("index", number)] = [
                name + (function.get("name") or ""),
                arguments + (function.get("arguments") or ""),
            ]
    told.calls = [(name, _decoded(arguments)) for name, arguments in calls.values()]
    return told


def lacking(recording: Recording) -> str:
    """What a parser has not found in the text of its form, "" if nothing is missing.

    Some of vLLM's parsers garble arguments while they stream; that is theirs to say.
    """
    kind, said = recording.kind, said_in_chat(recording)
    if kind != "reasoning" and not any(
        name == "weather" and "Ghent" in str(arguments) for name, arguments in said.calls
    ):
        return f"no call in {said}"
    if kind != "tool" and "coat" not in said.reasoning:
        return f"no thoughts in {said}"
    if kind == "reasoning" and "it rains" not in said.content:
        return f"no answer in {said}"
    return ""


def _decoded(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except json.JSONDecodeError:
        return arguments
