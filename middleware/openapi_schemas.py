"""What requests and answers hold, as OpenAPI 3.1 has it (`paceline.middleware.openapi`).

Bodies are described as far as every engine behind the proxy reads them alike. Engines know further
fields and the proxy passes them on, so no object is closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

Schema = dict[str, Any]

OBJECT: Final[Schema] = {"type": "object"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_AT_LEAST_ONE: Final[Schema] = {"type": "integer", "minimum": 1}
_NAME: Final[Schema] = {"type": "string", "minLength": 1}
_MODEL: Final[Schema] = {**_NAME, "description": "One of `/v1/models`."}
_TOKENS: Final[Schema] = {"type": "array", "items": _COUNT, "minItems": 1}
_RESPONSE_ID: Final = "^[A-Za-z0-9_-]{1,128}$"
_ENDS: Final = ("completed", "incomplete", "failed", "cancelled")


def _open(required: list[str], **properties: Schema) -> Schema:
    """An object with at least these properties."""
    return {"type": "object", "required": required, "properties": properties}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def ref(name: str) -> Schema:
    """Where the document has a schema of `SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


_SAMPLING: Final[dict[str, Schema]] = {
    "model": _MODEL,
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
_MESSAGES: Final[Schema] = {"type": "array", "items": _MESSAGE, "minItems": 1}
_BLOCKS: Final[Schema] = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": _TEXT_PART, "minItems": 1}]
}
_ASKED_MESSAGES: Final[dict[str, Schema]] = {
    "model": _MODEL,
    "messages": {
        "type": "array",
        "items": _open(["role", "content"], role={"enum": ["user", "assistant"]}, content=_BLOCKS),
        "minItems": 1,
    },
    "system": _BLOCKS,
}
_ITEM: Final = _open(
    ["role", "content"],
    type={"const": "message"},
    role={"enum": ["system", "developer", "user", "assistant"]},
    content={
        "anyOf": [
            {"type": "string"},
            {
                "type": "array",
                "items": _open(
                    ["type", "text"],
                    type={"enum": ["input_text", "output_text"]},
                    text={"type": "string"},
                ),
                "minItems": 1,
            },
        ]
    },
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
    "AnthropicError": _open(
        ["type", "error"],
        type={"const": "error"},
        error=_open(["type", "message"], type={"type": "string"}, message={"type": "string"}),
    ),
    "ChatRequest": _open(
        ["model", "messages"],
        messages=_MESSAGES,
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
    "ResponseRequest": _open(
        ["model", "input"],
        model=_MODEL,
        input={"anyOf": [_NAME, {"type": "array", "items": _ITEM, "minItems": 1}]},
        instructions=_or_null({"type": "string"}),
        max_output_tokens=_or_null(_AT_LEAST_ONE),
        temperature=_SAMPLING["temperature"],
        top_p=_SAMPLING["top_p"],
        stream=_SAMPLING["stream"],
        store={
            "type": ["boolean", "null"],
            "description": "Whether the engine keeps it, if it keeps any.",
        },
        previous_response_id={
            "type": ["string", "null"],
            "pattern": _RESPONSE_ID,
            "description": "A kept one of the same tenant, which this one goes on from.",
        },
        metadata=_or_null({"type": "object", "additionalProperties": {"type": "string"}}),
        prompt_cache_key=_SAMPLING["prompt_cache_key"],
    ),
    "ResponseReply": _open(
        ["id", "object", "created_at", "status", "model", "output"],
        id={"type": "string"},
        object={"const": "response"},
        created_at={"type": "number"},
        status={"enum": ["queued", "in_progress", *_ENDS]},
        model=_NAME,
        output={"type": "array", "items": _open(["type"], type={"type": "string"})},
        usage=_or_null(
            _open(
                ["input_tokens", "output_tokens", "total_tokens"],
                input_tokens=_COUNT,
                output_tokens=_COUNT,
                total_tokens=_COUNT,
            )
        ),
    ),
    "MessageRequest": _open(
        ["model", "max_tokens", "messages"],
        max_tokens=_AT_LEAST_ONE,
        stop_sequences={"type": "array", "items": _NAME, "maxItems": 4},
        temperature=_SAMPLING["temperature"],
        top_p=_SAMPLING["top_p"],
        stream={"type": "boolean"},
        metadata=_open([], user_id=_or_null({"type": "string"})),
        **_ASKED_MESSAGES,
    ),
    "MessageReply": _open(
        ["id", "type", "role", "model", "content", "stop_reason", "usage"],
        id={"type": "string"},
        type={"const": "message"},
        role={"const": "assistant"},
        model=_NAME,
        content={"type": "array", "items": _open(["type"], type={"type": "string"})},
        stop_reason=_REASON,
        stop_sequence=_or_null({"type": "string"}),
        usage=_open(["input_tokens", "output_tokens"], input_tokens=_COUNT, output_tokens=_COUNT),
    ),
    "CountRequest": _open(["model", "messages"], **_ASKED_MESSAGES),
    "CountReply": _open(["input_tokens"], input_tokens=_COUNT),
    "EmbeddingRequest": _open(
        ["model", "input"],
        model=_MODEL,
        input={
            "anyOf": [
                *(_NAME, {"type": "array", "items": _NAME, "minItems": 1}, _TOKENS),
                {"type": "array", "items": _TOKENS, "minItems": 1},
            ]
        },
        encoding_format={"enum": ["float", "base64"]},
        dimensions=_or_null(_AT_LEAST_ONE),
    ),
    "EmbeddingReply": _open(
        ["object", "data", "model", "usage"],
        object={"const": "list"},
        data={
            "type": "array",
            "items": _open(
                ["object", "index", "embedding"],
                object={"const": "embedding"},
                index=_COUNT,
                embedding={"type": ["array", "string"], "items": {"type": "number"}},
            ),
        },
        model=_NAME,
        usage=_USAGE,
    ),
    "TokenizeRequest": {
        "anyOf": [
            _open(
                ["prompt"],
                model=_MODEL,
                prompt={"type": "string"},
                messages={"type": "null"},
                add_special_tokens={"type": "boolean"},
                return_token_strs=_or_null({"type": "boolean"}),
            ),
            _open(
                ["messages"],
                model=_MODEL,
                messages=_MESSAGES,
                prompt={"type": "null"},
                add_generation_prompt={"type": "boolean"},
                return_token_strs=_or_null({"type": "boolean"}),
            ),
        ]
    },
    "TokenizeReply": _open(
        ["count", "max_model_len", "tokens"],
        count=_COUNT,
        max_model_len=_AT_LEAST_ONE,
        tokens={"type": "array", "items": _COUNT},
        token_strs=_or_null({"type": "array", "items": {"type": "string"}}),
    ),
    "DetokenizeRequest": _open(["tokens"], model=_MODEL, tokens={"type": "array", "items": _COUNT}),
    "DetokenizeReply": _open(["prompt"], prompt={"type": "string"}),
    "Model": _open(["id", "object"], id=_NAME, object={"const": "model"}),
    "Models": _open(
        ["object", "data"],
        object={"const": "list"},
        data={"type": "array", "items": ref("Model")},
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
