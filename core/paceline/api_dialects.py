"""Errors as each API writes them: OpenAI's, and Anthropic's under ``/v1/messages``."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final

import msgspec

from paceline.api_errors import ApiError

MESSAGES_PATH: Final = "/v1/messages"
RESPONSES_PATH: Final = "/v1/responses"
FIRST_ERROR: Final = 400
TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Anthropic's error type by HTTP status; any other is an ``api_error``."""


class Dialect(Enum):
    """Whose API a path belongs to."""

    OPENAI = "openai"
    RESPONSES = "responses"
    ANTHROPIC = "anthropic"


class _Told(msgspec.Struct):
    type: str = ""
    message: str = ""


class _ErrorBody(msgspec.Struct):
    type: str = ""
    error: _Told | None = None
    message: str = ""


_errors: Final = msgspec.json.Decoder(_ErrorBody)


def dialect_of(path: str) -> Dialect:
    """The dialect of a request's path, whether or not it is served."""
    for prefix, dialect in (
        (MESSAGES_PATH, Dialect.ANTHROPIC),
        (RESPONSES_PATH, Dialect.RESPONSES),
    ):
        if path == prefix or path.startswith(f"{prefix}/"):
            return dialect
    return Dialect.OPENAI


def error_body(error: ApiError, dialect: Dialect) -> bytes:
    """The JSON body of an answer that is an error."""
    if dialect is Dialect.ANTHROPIC:
        return _anthropic(error.status, error.message)
    return error.body()


def error_event(error: ApiError, dialect: Dialect) -> bytes:
    """An error as the last event of a stream that has begun.

    A stream of the Responses API gets an event of its own kind with the error of other streams in
    it too, which is what the SDK looks for.
    """
    if dialect is Dialect.ANTHROPIC:
        return b"event: error\ndata: " + error_body(error, dialect) + b"\n\n"
    if dialect is Dialect.OPENAI:
        return error.event()
    told: dict[str, Any] = msgspec.json.decode(error.body())
    event = {
        "type": "error",
        "code": error.code,
        "message": error.message,
        "param": error.param,
        **told,
    }
    return b"event: error\ndata: " + msgspec.json.encode(event) + b"\n\n"


def in_dialect(status: int, body: bytes, dialect: Dialect) -> bytes:
    """An engine's answer as clients of the path expect it; only Anthropic's errors change.

    vLLM writes errors that its checks of a request find as OpenAI does, on every path. O(bytes) of
    an error.
    """
    if dialect is not Dialect.ANTHROPIC or status < FIRST_ERROR:
        return body
    try:
        told = _errors.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _anthropic(status, body.decode("utf-8", "replace") or "the engine refused it")
    if told.type == "error" and told.error is not None:
        return body
    message = told.message if told.error is None else told.error.message
    return _anthropic(status, message or "the engine refused it")


def _anthropic(status: int, message: str) -> bytes:
    kind = TYPES.get(status, "api_error")
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}})
