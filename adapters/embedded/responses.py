"""OpenAI's Responses API on the embedded engine: a thin translation to its chat.

The engine keeps no responses: each request brings its whole conversation.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Final

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

TEXT_PARTS: Final = ("text", "input_text", "output_text")
ROLES: Final = ("system", "developer", "user", "assistant")
PLAIN_TEXT: Final = {"type": "text"}


class ResponsesRequest(BaseModel):
    """``/v1/responses``.

    Unknown fields are ignored; tools as well, which the engine's chat does not show its model.
    """

    model_config = ConfigDict(extra="ignore")

    model: str
    input: str | Annotated[list[dict[str, Any]], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    stream: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    text: dict[str, Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    vllm_xargs: dict[str, Any] | None = None


def parse_responses(body: bytes) -> ResponsesRequest:
    """Read and check a request.

    Raises:
        ApiError: 400, a field is wrong or asks for what this engine cannot do; 404, it goes on
            from a response.
    """
    request = parse_request(ResponsesRequest, body)
    if request.previous_response_id is not None:
        raise not_kept(request.previous_response_id)
    if request.background:
        raise unsupported("background", "this engine keeps no responses to be read later")
    if request.tool_choice not in (None, "auto", "none"):
        raise unsupported("tool_choice", "the model cannot be made to call a tool")
    if (request.text or {}).get("format") not in (None, PLAIN_TEXT):
        raise unsupported("text.format", "only text can be asked for")
    return request


def not_kept(response_id: str) -> ApiError:
    """What is told of a response that was made before."""
    return ApiError(
        404,
        f"Response with id {response_id[:200]!r} not found: this engine keeps no responses; send "
        "the whole conversation as input",
        code="response_not_found",
        param="response_id",
    )


def as_chat(request: ResponsesRequest) -> ChatRequest:
    """The same as a chat.

    Raises:
        ApiError: 400, an item is of a kind that the model cannot read.
    """
    messages: list[ChatMessage] = []
    if request.instructions:
        messages.append(ChatMessage(role="system", content=request.instructions))
    if isinstance(request.input, str):
        messages.append(ChatMessage(role="user", content=request.input))
    else:
        for position, item in enumerate(request.input):
            messages += _chat_messages(item, f"input.{position}")
    if not messages:
        raise ApiError(400, "input: there is no text in it", param="input")
    return ChatRequest(
        model=request.model,
        messages=messages,
        max_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        vllm_xargs=request.vllm_xargs,
    )


class ResponseWriter:
    """Writes one response.

    Args:
        response_id: begins with ``resp_``.
        model: name of the model that gives it.
        request: what was asked.
        reply: what it comes from.
    """

    def __init__(
        self, response_id: str, model: str, request: ResponsesRequest, reply: PendingReply
    ) -> None:
        self._response_id = response_id
        self._item_id = f"msg_{response_id.removeprefix('resp_')}"
        self._model = model
        self._request = request
        self._reply = reply
        self._created_at = int(time.time())
        self._num_events = 0

    def whole(self, steps: Sequence[Progress]) -> dict[str, Any]:
        """The whole answer."""
        text = "".join(step.text for step in steps)
        return self._ended(text, steps[-1])

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events; closing the iterator aborts the job."""
        place = {"output_index": 0, "item_id": self._item_id, "content_index": 0}
        texts: list[str] = []
        for kind in ("created", "in_progress"):
            response = self._response("in_progress", [])
            yield self._event(f"response.{kind}", response=response)
        item = self._item("in_progress", [])
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", **place, part=_part(""))
        try:
            async for step in self._reply.steps():
                if step.text:
                    texts.append(step.text)
                    yield self._event(
                        "response.output_text.delta", **place, delta=step.text, logprobs=[]
                    )
                if step.finish_reason is not None:
                    for event in self._ending("".join(texts), step, place):
                        yield event
        except ApiError as error:
            yield error_event(error, Dialect.RESPONSES)

    def _ending(self, text: str, last: Progress, place: dict[str, Any]) -> list[bytes]:
        response = self._ended(text, last)
        item = response["output"][0]
        return [
            self._event("response.output_text.done", **place, text=text, logprobs=[]),
            self._event("response.content_part.done", **place, part=_part(text)),
            self._event("response.output_item.done", output_index=0, item=item),
            self._event(f"response.{response['status']}", response=response),
        ]

    def _ended(self, text: str, last: Progress) -> dict[str, Any]:
        status = "incomplete" if last.finish_reason == "length" else "completed"
        return self._response(status, [self._item(status, [_part(text)])])

    def _item(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def _response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        request = self._request
        is_cut = status == "incomplete"
        return {
            "id": self._response_id,
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": self._model,
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "service_tier": "default",
            "store": False,
            "temperature": 1.0 if request.temperature is None else request.temperature,
            "text": {"format": PLAIN_TEXT},
            "tool_choice": "none",
            "tools": [],
            "top_p": 1.0 if request.top_p is None else request.top_p,
            "truncation": "disabled",
            "usage": None if status == "in_progress" else self._usage(),
            "user": request.user,
        }

    def _usage(self) -> dict[str, Any]:
        reply = self._reply
        return {
            "input_tokens": reply.num_prompt,
            "input_tokens_details": {"cached_tokens": reply.num_cached},
            "output_tokens": reply.num_said,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": reply.num_prompt + reply.num_said,
        }

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = {"type": kind, "sequence_number": self._num_events} | fields
        self._num_events += 1
        return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _chat_messages(item: dict[str, Any], place: str) -> list[ChatMessage]:
    kind = item.get("type", "message")
    if kind == "message" and item.get("role") in ROLES:
        content = _text(item.get("content"), f"{place}.content")
        return [ChatMessage(role=item["role"], content=content)]
    if kind == "function_call":
        called = {"name": item.get("name"), "arguments": item.get("arguments") or "{}"}
        return [ChatMessage(role="assistant", tool_calls=[{"function": called}])]
    if kind == "function_call_output":
        return [ChatMessage(role="tool", content=_text(item.get("output"), f"{place}.output"))]
    if kind == "reasoning":
        return []
    raise ApiError(
        400,
        f"{place}: this engine reads messages, function calls and what they gave; this is of type "
        f"{kind!r:.80} and role {item.get('role')!r:.80}",
        param=place,
    )


def _text(content: Any, place: str) -> str:
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for number, part in enumerate(content if isinstance(content, list) else [content]):
        text = part.get("text") if isinstance(part, dict) else None
        if not isinstance(text, str) or part["type"] not in TEXT_PARTS:
            raise ApiError(
                400,
                f"{place}.{number}: this model reads text only",
                param=f"{place}.{number}",
            )
        texts.append(text)
    return "\n".join(texts)
