"""Anthropic's Messages API on the embedded engine: a thin translation to its chat."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from paceline.adapters.embedded.protocol import (
    ChatMessage,
    ChatRequest,
    parse_request,
    unsupported,
)
from paceline.adapters.embedded.replying import PendingReply
from paceline.adapters.embedded.requests import Progress
from paceline.api_dialects import Dialect, error_event
from paceline.api_errors import ApiError

IGNORED_BLOCKS: Final = ("thinking", "redacted_thinking")
Blocks = str | list[dict[str, Any]]


class Message(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["user", "assistant", "system"]
    content: Blocks


class CountRequest(BaseModel):
    """``/v1/messages/count_tokens``."""

    model_config = ConfigDict(extra="ignore")

    model: str
    messages: Annotated[list[Message], Field(min_length=1)]
    system: Blocks | None = None


class MessagesRequest(CountRequest):
    """``/v1/messages``.

    Unknown fields are ignored; tools as well, which the engine's chat does not show its model.
    """

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)] = []
    stream: bool = False
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    tool_choice: dict[str, Any] | None = None
    vllm_xargs: dict[str, Any] | None = None


def parse_messages(body: bytes) -> MessagesRequest:
    """Read and check a request.

    Raises:
        ApiError: 400, a field is wrong or asks for what this engine cannot do.
    """
    request = parse_request(MessagesRequest, body)
    if (request.tool_choice or {}).get("type", "auto") not in ("auto", "none"):
        raise unsupported("tool_choice", "the model cannot be made to call a tool")
    return request


def parse_count(body: bytes) -> CountRequest:
    """Read and check a request to count tokens.

    Raises:
        ApiError: 400, a field is wrong.
    """
    return parse_request(CountRequest, body)


def as_chat(request: CountRequest) -> ChatRequest:
    """The same as a chat.

    Raises:
        ApiError: 400, a block is of a kind that the model cannot read.
    """
    messages: list[ChatMessage] = []
    if request.system:
        messages.append(ChatMessage(role="system", content=_text(request.system, "system")))
    for position, message in enumerate(request.messages):
        messages += _chat_messages(message, f"messages.{position}")
    if not messages:
        raise ApiError(400, "messages: there is no text in them", param="messages")
    chat = ChatRequest(model=request.model, messages=messages)
    if isinstance(request, MessagesRequest):
        chat.max_tokens = request.max_tokens
        chat.temperature = request.temperature
        chat.top_p = request.top_p
        chat.stop = request.stop_sequences or None
        chat.vllm_xargs = request.vllm_xargs
    return chat


class MessageWriter:
    """Writes one reply.

    Args:
        message_id: of the reply.
        model: name of the model that gives it.
        reply: what it comes from.
    """

    def __init__(self, message_id: str, model: str, reply: PendingReply) -> None:
        self._message_id = message_id
        self._model = model
        self._reply = reply

    def whole(self, steps: Sequence[Progress]) -> dict[str, Any]:
        """The whole answer."""
        text = "".join(step.text for step in steps)
        return self._message([{"type": "text", "text": text}], _ending(steps[-1]))

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events; closing the iterator aborts the job."""
        has_begun = False
        try:
            async for step in self._reply.steps():
                if not has_begun:
                    has_begun = True
                    for event in self._begin():
                        yield event
                if step.text:
                    delta = {"type": "text_delta", "text": step.text}
                    yield _event("content_block_delta", index=0, delta=delta)
                if step.finish_reason is not None:
                    yield _event("content_block_stop", index=0)
                    yield _event("message_delta", delta=_ending(step), usage=self._usage())
                    yield _event("message_stop")
        except ApiError as error:
            yield error_event(error, Dialect.ANTHROPIC)

    def _begin(self) -> Iterator[bytes]:
        nothing = {"stop_reason": None, "stop_sequence": None}
        yield _event("message_start", message=self._message([], nothing))
        yield _event("content_block_start", index=0, content_block={"type": "text", "text": ""})

    def _message(self, content: list[dict[str, Any]], ending: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self._message_id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": content,
            **ending,
            "usage": self._usage(),
        }

    def _usage(self) -> dict[str, int]:
        reply = self._reply
        return {
            "input_tokens": reply.num_prompt - reply.num_cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": reply.num_cached,
            "output_tokens": reply.num_said,
        }


def _ending(step: Progress) -> dict[str, Any]:
    reason = "max_tokens" if step.finish_reason == "length" else "end_turn"
    if step.matched_stop:
        reason = "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": step.matched_stop or None}


def _event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind} | fields)}\n\n".encode()


def _chat_messages(message: Message, place: str) -> list[ChatMessage]:
    """A message as a chat's; what tools gave comes before what the user says beside it."""
    if isinstance(message.content, str):
        return [ChatMessage(role=message.role, content=message.content)]
    results, texts, calls = [], [], []
    for number, block in enumerate(message.content):
        kind, at = block.get("type"), f"{place}.content.{number}"
        if kind == "tool_result":
            content = _text(block.get("content") or "", at)
            results.append(ChatMessage(role="tool", content=content))
        elif kind == "tool_use":
            arguments = json.dumps(block.get("input") or {})
            calls.append({"function": {"name": block.get("name"), "arguments": arguments}})
        elif kind not in IGNORED_BLOCKS:
            texts.append(_block_text(block, at))
    if not (texts or calls):
        return results
    said = ChatMessage(role=message.role, content="\n".join(texts), tool_calls=calls or None)
    return [*results, said]


def _text(content: Blocks, place: str) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_block_text(block, f"{place}.{i}") for i, block in enumerate(content))


def _block_text(block: dict[str, Any], place: str) -> str:
    text = block.get("text")
    if block.get("type") != "text" or not isinstance(text, str):
        raise ApiError(
            400,
            f"{place}: this model reads text only; this block is of type {block.get('type')!r}",
            param=place,
        )
    return text
