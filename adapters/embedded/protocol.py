"""The part of OpenAI's API that the embedded engine speaks.

Requests read and checked, answers written.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paceline.adapters.embedded.requests import ALL_SOURCES, GenerationRequest
from paceline.adapters.embedded.sampling import SamplingParams
from paceline.adapters.embedded.target import Target
from paceline.adapters.identity import draft_limits, request_info_from_xargs
from paceline.adapters.prediction import MAX_CHARACTERS
from paceline.api_errors import ApiError
from paceline.caches.records import SHARED_GROUP

MAX_STOP_STRINGS: Final = 4
SEED_BITS: Final = 63
MAX_CHAT_LOGPROBS: Final = 20
MAX_COMPLETION_LOGPROBS: Final = 5
"""OpenAI's limits."""

DRAFT_TOKENS_KEY: Final = "draft_tokens"
DRAFT_SOURCES_KEY: Final = "draft_sources"
"""Extra arguments with which a client narrows its own request's drafts."""

M = TypeVar("M", bound=BaseModel)
R = TypeVar("R", bound="_Request")
StopString = Annotated[str, Field(min_length=1)]


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False
    continuous_usage_stats: bool = False


class _Request(BaseModel):
    """What chat and completion requests have in common.

    Unknown fields are ignored, as OpenAI-compatible engines do.
    """

    model_config = ConfigDict(extra="ignore")

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    return_token_ids: bool | None = None
    service_tier: str | None = None
    vllm_xargs: dict[str, Any] | None = None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def wanted_tokens(self) -> int | None:
        """Longest reply asked for, None for what is left of the context."""
        return self.max_tokens

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continues_usage(self) -> bool:
        """Whether every chunk of a stream says the usage so far."""
        options = self.stream_options
        return options is not None and options.include_usage and options.continuous_usage_stats


class ChatMessage(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None


class Prediction(BaseModel):
    """What a client expects the reply to be."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["content"]
    content: str | list[dict[str, Any]]


class ChatRequest(_Request):
    """``/v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    prediction: Prediction | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_CHAT_LOGPROBS)] | None = None

    @property
    def wanted_tokens(self) -> int | None:
        """Longest reply asked for, None for what is left of the context."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to list for each token, None for no log probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Request):
    """``/v1/completions``."""

    prompt: str | Annotated[list[int], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = 16
    logprobs: Annotated[int, Field(ge=0, le=MAX_COMPLETION_LOGPROBS)] | None = None
    echo: bool | None = None

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to list for each token, None for no log probabilities."""
        return self.logprobs


def parse_chat(body: bytes) -> ChatRequest:
    """Read and check a chat request.

    Raises:
        ApiError: 400, a field is wrong or asks for what this engine cannot do.
    """
    request = _parse(ChatRequest, body)
    if request.tool_choice not in (None, "auto", "none"):
        raise unsupported(
            "tool_choice", "the model cannot be made to call a tool; use auto or none"
        )
    if request.response_format not in (None, {"type": "text"}):
        raise unsupported("response_format", "only text can be asked for")
    if request.top_logprobs is not None and not request.logprobs:
        raise unsupported("top_logprobs", "alternatives need logprobs: true")
    return request


def parse_completion(body: bytes) -> CompletionRequest:
    """Read and check a completion request.

    Raises:
        ApiError: 400, a field is wrong or asks for what this engine cannot do.
    """
    request = _parse(CompletionRequest, body)
    if request.echo:
        raise unsupported("echo", "the prompt is not repeated")
    return request


def chat_prompt(
    request: ChatRequest, tokenizer: Any, *, add_generation_prompt: bool = True
) -> list[int]:
    """Token ids of a conversation under the model's chat template, ready for the assistant's turn.

    Without `add_generation_prompt` they end with the last message.

    Raises:
        ApiError: 400, a message has parts other than text.
    """
    messages = [{"role": m.role, "content": _content(m, i)} for i, m in enumerate(request.messages)]
    text = tokenizer.apply_chat_template(
        messages, add_generation_prompt=add_generation_prompt, tokenize=False
    )
    return list(tokenizer.encode(text, add_special_tokens=False))


def predicted_ids(request: ChatRequest, tokenizer: Any) -> tuple[int, ...]:
    """Token ids of what the client predicts; none without a prediction. O(its text).

    Raises:
        ApiError: 400, it has parts other than text, or is too long.
    """
    if request.prediction is None:
        return ()
    text = _parts_text(request.prediction.content, "prediction.content", joined_by="")
    if len(text) > MAX_CHARACTERS:
        raise ApiError(
            400,
            f"prediction has {len(text)} characters; give {MAX_CHARACTERS} at most",
            param="prediction",
        )
    return tuple(tokenizer.encode(text, add_special_tokens=False))


def generation_request(
    request: ChatRequest | CompletionRequest,
    prompt_ids: list[int],
    target: Target,
    *,
    request_id: str,
    drafter_group: str = SHARED_GROUP,
    predicted_ids: tuple[int, ...] = (),
) -> GenerationRequest:
    """The engine's request for a client's.

    Args:
        request: the client's.
        prompt_ids: its prompt.
        target: what answers.
        request_id: unique while it is open.
        drafter_group: whose drafter the engine's model is.
        predicted_ids: what the client expects to be said.

    Raises:
        ApiError: 400, prompt and reply do not fit the context, the prompt is not of this
            vocabulary, or drafts are asked for that there are not.
    """
    limit, num_prompt = target.max_model_len, len(prompt_ids)
    wanted = request.wanted_tokens
    if num_prompt + (wanted or 1) > limit:
        asked = f" and {wanted} tokens of reply were asked for" if wanted else ""
        raise ApiError(
            400,
            f"This model's maximum context length is {limit} tokens. However, the prompt has "
            f"{num_prompt} tokens"
            f"{asked}. Please reduce the length of the prompt or of the reply.",
            code="context_length_exceeded",
            param="messages" if isinstance(request, ChatRequest) else "prompt",
        )
    vocabulary = int(target.model.config.vocab_size)
    if not prompt_ids or not all(0 <= token_id < vocabulary for token_id in prompt_ids):
        raise ApiError(
            400,
            f"the prompt needs token ids from 0 to {vocabulary - 1}, at least one",
            param="prompt",
        )
    xargs = request.vllm_xargs
    check_drafts(xargs)
    drafts = draft_limits(xargs, drafter_group=drafter_group)
    temperature = 1.0 if request.temperature is None else request.temperature
    return GenerationRequest(
        info=replace(request_info_from_xargs(request_id, xargs), temperature=temperature),
        prompt_ids=tuple(prompt_ids),
        max_tokens=limit - num_prompt if wanted is None else wanted,
        sampling=SamplingParams(
            temperature=temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=secrets.randbits(SEED_BITS) if request.seed is None else request.seed,
        ),
        stop=request.stop_strings,
        max_draft_tokens=drafts.max_tokens,
        draft_sources=frozenset(each for each in ALL_SOURCES if each in drafts.sources),
        num_logprobs=request.num_logprobs,
        predicted_ids=predicted_ids,
        limits=drafts,
    )


def check_drafts(xargs: Mapping[str, Any] | None) -> None:
    """Check what the client itself says of its drafts; what is right, `draft_limits` reads.

    Raises:
        ApiError: 400, it cannot be understood.
    """
    number, named = (xargs or {}).get(DRAFT_TOKENS_KEY), (xargs or {}).get(DRAFT_SOURCES_KEY)
    if number is not None and (type(number) is not int or number < 0):
        raise _bad_xarg(DRAFT_TOKENS_KEY, number, "give 0 for no drafts, or a number of tokens")
    names = set(filter(None, named.split(","))) if isinstance(named, str) else {""}
    if named is not None and not names <= ALL_SOURCES:
        raise _bad_xarg(DRAFT_SOURCES_KEY, named, "give memory, model, or memory,model")


def _bad_xarg(name: str, value: Any, fix: str) -> ApiError:
    return ApiError(400, f"vllm_xargs.{name} is {value!r}; {fix}", param=f"vllm_xargs.{name}")


def parse_request(kind: type[M], body: bytes) -> M:
    """Read a request of some kind.

    Raises:
        ApiError: 400, a field is wrong.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ApiError(
            400, f"{where or 'the body'}: {problem['msg']}", param=where or None
        ) from error


def _parse(kind: type[R], body: bytes) -> R:
    request = parse_request(kind, body)
    if request.n not in (None, 1):
        raise unsupported("n", f"one reply is given at a time, {request.n} were asked for")
    return request


def unsupported(param: str, message: str) -> ApiError:
    """What is told of a field that asks for what this engine cannot do."""
    return ApiError(400, f"{param}: {message}", code="unsupported_parameter", param=param)


def _content(message: ChatMessage, position: int) -> str:
    """A message's text.

    Its parts joined, its tool calls written out as the model was trained to read them.
    """
    parts = []
    if isinstance(message.content, str) or message.content:
        place = f"messages.{position}.content"
        parts.append(_parts_text(message.content, place, joined_by="\n"))
    for call in message.tool_calls or ():
        function = call.get("function", {})
        name, arguments = json.dumps(function.get("name")), function.get("arguments", "{}")
        parts.append(f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>')
    return "\n".join(parts)


def _parts_text(content: str | list[dict[str, Any]], place: str, *, joined_by: str) -> str:
    """The text of a content, its parts joined."""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for number, part in enumerate(content):
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ApiError(
                400,
                f"this model reads text only; part {number} is of type {part.get('type')!r}",
                param=f"{place}.{number}",
            )
        texts.append(part["text"])
    return joined_by.join(texts)
