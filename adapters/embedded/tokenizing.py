"""vLLM's ``/tokenize`` and ``/detokenize`` on the embedded engine."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from paceline.adapters.embedded.protocol import (
    ChatMessage,
    ChatRequest,
    chat_prompt,
    parse_request,
)
from paceline.adapters.embedded.target import Target
from paceline.api_errors import ApiError


class TokenizeRequest(BaseModel):
    """``/tokenize``: a prompt, or a chat."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = True
    return_token_strs: bool | None = None


class DetokenizeRequest(BaseModel):
    """``/detokenize``."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]


def parse_tokenize(body: bytes) -> TokenizeRequest:
    """Read and check a request.

    Raises:
        ApiError: 400, a field is wrong.
    """
    request = parse_request(TokenizeRequest, body)
    if (request.prompt is None) == (request.messages is None):
        raise ApiError(400, "give either prompt or messages", param="prompt")
    return request


def parse_detokenize(body: bytes) -> DetokenizeRequest:
    """Read and check a request.

    Raises:
        ApiError: 400, a field is wrong.
    """
    return parse_request(DetokenizeRequest, body)


def tokenized(request: TokenizeRequest, target: Target) -> dict[str, Any]:
    """The answer to ``/tokenize``. O(text).

    Raises:
        ApiError: 400, a message has parts other than text.
    """
    tokenizer = target.tokenizer
    if request.messages is not None:
        chat = ChatRequest(model="", messages=request.messages)
        token_ids = chat_prompt(
            chat, tokenizer, add_generation_prompt=request.add_generation_prompt
        )
    else:
        adds = request.add_special_tokens is not False
        token_ids = list(tokenizer.encode(request.prompt, add_special_tokens=adds))
    strings = tokenizer.convert_ids_to_tokens(token_ids) if request.return_token_strs else None
    return {
        "count": len(token_ids),
        "max_model_len": target.max_model_len,
        "tokens": token_ids,
        "token_strs": strings,
    }


def detokenized(request: DetokenizeRequest, target: Target) -> dict[str, Any]:
    """The answer to ``/detokenize``. O(tokens).

    Raises:
        ApiError: 400, a token is not one of the model's.
    """
    vocabulary = int(target.model.config.vocab_size)
    wrong = next((token_id for token_id in request.tokens if token_id >= vocabulary), None)
    if wrong is not None:
        raise ApiError(
            400, f"tokens: {wrong} is no token; give ids from 0 to {vocabulary - 1}", param="tokens"
        )
    return {"prompt": target.tokenizer.decode(request.tokens)}
