"""What the proxy serves, as an OpenAPI 3.1 document (``/openapi.json``).

Requests and answers are described in `paceline.middleware.openapi_schemas`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from paceline import __version__
from paceline.middleware.openapi_schemas import OBJECT, SCHEMAS, Schema, ref

OPENAPI_PATH: Final = "/openapi.json"
ERRORS: Final[Mapping[str, str]] = {
    "400": "The request is wrong, or asks for what the engine cannot do.",
    "401": "No key, or one that nobody has.",
    "403": "The policy does not allow it.",
    "404": "No such model or path.",
    "405": "Another method is taken here.",
    "413": "The body is too large.",
    "429": "A limit of the tenant's is reached; `retry-after` says for how long.",
    "500": "The proxy or the engine failed.",
    "501": "The engine serves no such model.",
    "502": "No engine could answer.",
    "503": "No engine can be expected to answer, or it is overloaded.",
}


KEYS: Final[list[dict[str, list[str]]]] = [{"bearer": []}, {"apiKey": []}, {}]
"""Either way of sending a key; none where there is no policy file."""
NO_SUCH_MODEL: Final = "501"
GENERATION_ERRORS: Final = tuple(status for status in ERRORS if status != NO_SUCH_MODEL)
READ_ERRORS: Final = ("400", "401", "404", "405", "413", "500", "502", "503")
OWN_ERRORS: Final = ("405", "500")
_SESSION: Final = {
    "name": "x-session-id",
    "in": "header",
    "description": "The conversation, for SDKs that cannot send `prompt_cache_key`.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
}


def _json(schema: Schema) -> Schema:
    return {"content": {"application/json": {"schema": schema}}}


def _answers(good: Schema, errors: tuple[str, ...], error: str = "Error") -> Schema:
    wrong = {status: {"description": ERRORS[status], **_json(ref(error))} for status in errors}
    return {"200": {"description": "The answer.", **good}, **wrong}


def _generation(summary: str, asked: str, replied: str, *, error: str = "Error") -> Schema:
    path = _asking(summary, asked, replied, error=error)
    path["post"]["responses"]["200"]["content"]["text/event-stream"] = {}
    path["post"]["parameters"] = [_SESSION]
    return path


def _asking(summary: str, asked: str, replied: str, *others: str, error: str = "Error") -> Schema:
    """A path that takes a body and answers as a whole.

    Args:
        summary: of it.
        asked: schema of its body.
        replied: schema of its answer.
        others: further statuses that engines answer with.
        error: schema of its errors.
    """
    return {
        "post": {
            "summary": summary,
            "security": KEYS,
            "requestBody": {"required": True, **_json(ref(asked))},
            "responses": _answers(_json(ref(replied)), (*GENERATION_ERRORS, *others), error),
        }
    }


def _read(summary: str, good: Schema, errors: tuple[str, ...], *parameters: Schema) -> Schema:
    operation: Schema = {"summary": summary, "responses": _answers(good, errors)}
    if errors is READ_ERRORS:
        operation["security"] = KEYS
    if parameters:
        operation["parameters"] = list(parameters)
    return {"get": operation}


def _in_path(name: str, pattern: str) -> Schema:
    schema = {"type": "string", "pattern": pattern}
    return {"name": name, "in": "path", "required": True, "schema": schema}


_RESPONSE_ID: Final = _in_path("response_id", r"^resp_[A-Za-z0-9_-]{1,100}$")
_PLAIN: Final = {"content": {"text/plain": {"schema": {"type": "string"}}}}
_READY: Final = _read("Whether some engine can answer.", _json(ref("Status")), OWN_ERRORS)
_READY["get"]["responses"]["503"] = {"description": "None can.", **_json(ref("Status"))}

PATHS: Final[Mapping[str, Schema]] = {
    "/v1/chat/completions": _generation(
        "A reply to a conversation, whole or streamed.", "ChatRequest", "ChatReply"
    ),
    "/v1/completions": _generation(
        "A text that goes on from a prompt, whole or streamed.",
        "CompletionRequest",
        "CompletionReply",
    ),
    "/v1/responses": _generation(
        "A reply as OpenAI's Responses API has it, whole or streamed.",
        "ResponseRequest",
        "ResponseReply",
    ),
    "/v1/responses/{response_id}": _read(
        "A response that an engine keeps, if it is the tenant's.",
        _json(ref("ResponseReply")),
        READ_ERRORS,
        _RESPONSE_ID,
    ),
    "/v1/responses/{response_id}/cancel": {
        "post": _read(
            "Stop a response that is made in the background.",
            _json(ref("ResponseReply")),
            READ_ERRORS,
            _RESPONSE_ID,
        )["get"]
    },
    "/v1/messages": _generation(
        "A reply as Anthropic's Messages API has it, whole or streamed.",
        "MessageRequest",
        "MessageReply",
        error="AnthropicError",
    ),
    "/v1/messages/count_tokens": _asking(
        "How many tokens a conversation is.", "CountRequest", "CountReply", error="AnthropicError"
    ),
    "/v1/embeddings": _asking(
        "Vectors of texts, where an engine serves an embedding model.",
        *("EmbeddingRequest", "EmbeddingReply", NO_SUCH_MODEL),
    ),
    "/tokenize": _asking(
        "The tokens of a prompt or of a conversation.", "TokenizeRequest", "TokenizeReply"
    ),
    "/detokenize": _asking("The text of tokens.", "DetokenizeRequest", "DetokenizeReply"),
    "/v1/models": _read("The models that the engines serve.", _json(ref("Models")), READ_ERRORS),
    "/v1/models/{model}": _read(
        "One model.",
        _json(ref("Model")),
        READ_ERRORS,
        _in_path("model", r"^[A-Za-z0-9_.-]{1,64}$"),
    ),
    "/paceline/requests/{request_id}": _read(
        "What was decided for a request.",
        _json(ref("Decisions")),
        READ_ERRORS,
        _in_path("request_id", r"^pace-[0-9a-f]{32}$"),
    ),
    "/": {
        **_read("Whether the proxy runs.", _json(ref("Status")), OWN_ERRORS),
        "head": {
            "summary": "Whether the proxy runs, as some clients ask first.",
            "responses": {"200": {"description": "It does."}},
        },
    },
    "/health": _read("Whether the proxy runs.", _json(ref("Status")), OWN_ERRORS),
    "/ready": _READY,
    "/metrics": _read("Counters, for Prometheus.", _PLAIN, ("401", *OWN_ERRORS)),
    OPENAPI_PATH: _read("This document.", _json(OBJECT), OWN_ERRORS),
}


def document() -> Schema:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Paceline",
            "version": __version__,
            "description": "Engines that draft from what agents have said, behind one address.",
        },
        "paths": dict(PATHS),
        "components": {
            "schemas": dict(SCHEMAS),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def encoded() -> bytes:
    """The document as it is sent."""
    return msgspec.json.encode(document())
