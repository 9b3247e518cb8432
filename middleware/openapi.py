"""What the proxy serves, as an OpenAPI 3.1 document (``/openapi.json``).

Bodies are described as far as every engine behind the proxy reads them alike. Engines know further
fields and the proxy passes them on, so no object is closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from paceline import __version__

OPENAPI_PATH: Final = "/openapi.json"
Schema = dict[str, Any]

_OBJECT: Final[Schema] = {"type": "object"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_AT_LEAST_ONE: Final[Schema] = {"type": "integer", "minimum": 1}
_NAME: Final[Schema] = {"type": "string", "minLength": 1}
ERRORS: Final[Mapping[str, str]] = {
    "400": "The request is wrong, or asks for what the engine cannot do.",
    "401": "No key, or one that nobody has.",
    "403": "The policy does not allow it.",
    "404": "No such model or path.",
    "405": "Another method is taken here.",
    "413": "The body is too large.",
    "429": "A limit of the tenant's is reached; `retry-after` says for how long.",
    "500": "The proxy or the engine failed.",
    "502": "No engine could answer.",
    "503": "No engine can be expected to answer, or it is overloaded.",
}


def _open(required: list[str], **properties: Schema) -> Schema:
    """An object with at least these properties."""
    return {"type": "object", "required": required, "properties": properties}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_SAMPLING: Final[dict[str, Schema]] = {
    "model": {**_NAME, "description": "One of `/v1/models`."},
    "max_tokens": _or_null(_AT_LEAST_ONE),
    "temperature": _or_null({"type": "number", "minimum": 0, "maximum": 2}),
    "top_p": _or_null({"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
    "seed": _or_null({"type": "integer"}),
    "stop": _or_null(
        {"anyOf": [_NAME, {"type": "array", "items": _NAME, "minItems": 1, "maxItems": 4}]}
    ),
    "n": _or_null({"const": 1}),
    "stream": _or_null({"type": "boolean"}),
    "prompt_cache_key": {
        "type": "string",
        "description": "The conversation; it stays on the engine that knows it.",
    },
}
_TEXT_PART: Final = _open(["type", "text"], type={"const": "text"}, text={"type": "string"})
_MESSAGE: Final = _open(
    ["role", "content"],
    role={"enum": ["system", "user", "assistant", "tool"]},
    content={"anyOf": [{"type": "string"}, {"type": "array", "items": _TEXT_PART}]},
)
_USAGE: Final = _open(
    ["prompt_tokens", "total_tokens"],
    prompt_tokens=_COUNT,
    completion_tokens=_COUNT,
    total_tokens=_COUNT,
)
_REPLY: Final = {"id": {"type": "string"}, "created": {"type": "integer"}, "model": _NAME}
_REASON: Final = _or_null({"type": "string"})
_CHOICE: Final = {"index": _COUNT, "finish_reason": _REASON}

SCHEMAS: Final[Mapping[str, Schema]] = {
    "Error": _open(
        ["error"],
        error=_open(
            ["message", "type"],
            message={"type": "string"},
            type={"type": "string"},
            param={"type": ["string", "null"]},
            code={"type": ["string", "integer", "null"]},
        ),
    ),
    "ChatRequest": _open(
        ["model", "messages"],
        messages={"type": "array", "items": _MESSAGE, "minItems": 1},
        max_completion_tokens=_or_null(_AT_LEAST_ONE),
        **_SAMPLING,
    ),
    "ChatReply": _open(
        ["id", "object", "created", "model", "choices", "usage"],
        object={"const": "chat.completion"},
        choices={
            "type": "array",
            "minItems": 1,
            "items": _open(
                ["index", "message", "finish_reason"],
                message=_open(
                    ["role", "content"],
                    role={"const": "assistant"},
                    content={"type": ["string", "null"]},
                ),
                **_CHOICE,
            ),
        },
        usage=_USAGE,
        **_REPLY,
    ),
    "CompletionRequest": _open(
        ["model", "prompt"],
        prompt={"anyOf": [_NAME, {"type": "array", "items": _COUNT, "minItems": 1}]},
        **_SAMPLING,
    ),
    "CompletionReply": _open(
        ["id", "object", "created", "model", "choices", "usage"],
        object={"const": "text_completion"},
        choices={
            "type": "array",
            "minItems": 1,
            "items": _open(["index", "text", "finish_reason"], text={"type": "string"}, **_CHOICE),
        },
        usage=_USAGE,
        **_REPLY,
    ),
    "Model": _open(["id", "object"], id=_NAME, object={"const": "model"}),
    "Models": _open(
        ["object", "data"],
        object={"const": "list"},
        data={"type": "array", "items": _ref("Model")},
    ),
    "Status": _open(["status"], status={"type": "string"}),
    "Decisions": _open(
        ["request_id", "is_finished", "rounds", "draft_tokens", "accepted_tokens", "reason"],
        request_id=_NAME,
        is_finished={"type": "boolean"},
        rounds=_COUNT,
        draft_tokens=_COUNT,
        accepted_tokens=_COUNT,
        reason={"type": "string"},
    ),
}

KEYS: Final[list[dict[str, list[str]]]] = [{"bearer": []}, {"apiKey": []}, {}]
"""Either way of sending a key; none where there is no policy file."""
GENERATION_ERRORS: Final = tuple(ERRORS)
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


def _answers(good: Schema, errors: tuple[str, ...]) -> Schema:
    wrong = {status: {"description": ERRORS[status], **_json(_ref("Error"))} for status in errors}
    return {"200": {"description": "The answer.", **good}, **wrong}


def _generation(summary: str, asked: str, replied: str) -> Schema:
    good = _json(_ref(replied))
    good["content"]["text/event-stream"] = {}
    return {
        "post": {
            "summary": summary,
            "security": KEYS,
            "parameters": [_SESSION],
            "requestBody": {"required": True, **_json(_ref(asked))},
            "responses": _answers(good, GENERATION_ERRORS),
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


_PLAIN: Final = {"content": {"text/plain": {"schema": {"type": "string"}}}}
_READY: Final = _read("Whether some engine can answer.", _json(_ref("Status")), OWN_ERRORS)
_READY["get"]["responses"]["503"] = {"description": "None can.", **_json(_ref("Status"))}

PATHS: Final[Mapping[str, Schema]] = {
    "/v1/chat/completions": _generation(
        "A reply to a conversation, whole or streamed.", "ChatRequest", "ChatReply"
    ),
    "/v1/completions": _generation(
        "A text that goes on from a prompt, whole or streamed.",
        "CompletionRequest",
        "CompletionReply",
    ),
    "/v1/models": _read("The models that the engines serve.", _json(_ref("Models")), READ_ERRORS),
    "/v1/models/{model}": _read(
        "One model.",
        _json(_ref("Model")),
        READ_ERRORS,
        _in_path("model", r"^[A-Za-z0-9_.-]{1,64}$"),
    ),
    "/paceline/requests/{request_id}": _read(
        "What was decided for a request.",
        _json(_ref("Decisions")),
        READ_ERRORS,
        _in_path("request_id", r"^pace-[0-9a-f]{32}$"),
    ),
    "/health": _read("Whether the proxy runs.", _json(_ref("Status")), OWN_ERRORS),
    "/ready": _READY,
    "/metrics": _read("Counters, for Prometheus.", _PLAIN, ("401", *OWN_ERRORS)),
    OPENAPI_PATH: _read("This document.", _json(_OBJECT), OWN_ERRORS),
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
