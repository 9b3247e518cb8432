"""Requests in the shape in which Claude Code 2.1.197 was seen to make them; the words are ours."""

from __future__ import annotations

from typing import Any, Final

SESSION: Final = "b840ede4-4fee-4fc2-b876-acd6f04da97c"
QUERY: Final = "?beta=true"
BETAS: Final = (
    *("claude-code-20250219", "interleaved-thinking-2025-05-14"),
    *("thinking-token-count-2026-05-13", "context-management-2025-06-27"),
    *("prompt-caching-scope-2026-01-05", "mid-conversation-system-2026-04-07"),
    "effort-2025-11-24",
)
HEADERS: Final = {
    "accept": "application/json",
    "accept-encoding": "gzip, deflate, br, zstd",
    "content-type": "application/json",
    "user-agent": "claude-cli/2.1.197 (external, sdk-cli)",
    "x-app": "cli",
    "x-claude-code-session-id": SESSION,
    "x-stainless-lang": "js",
    "x-stainless-retry-count": "0",
    "x-stainless-timeout": "600",
    "anthropic-beta": ",".join(BETAS),
    "anthropic-dangerous-direct-browser-access": "true",
    "anthropic-version": "2023-06-01",
}
CACHED: Final = {"cache_control": {"type": "ephemeral"}}
TOOL: Final = {
    "name": "Read",
    "description": "Reads a file.",
    "input_schema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {"file_path": {"type": "string"}},
        "required": ["file_path"],
        "additionalProperties": False,
    },
}
TITLE: Final = {
    "type": "json_schema",
    "schema": {
        "type": "object",
        "properties": {"title": {"type": "string"}},
        "required": ["title"],
        "additionalProperties": False,
    },
}


def text(words: str, **more: Any) -> dict[str, Any]:
    """A block of text."""
    return {"type": "text", "text": words, **more}


def turn(*, stream: bool = True, tools: bool = True, **more: Any) -> dict[str, Any]:
    """The first request of a conversation, without its model."""
    return {
        "messages": [
            {"role": "user", "content": [text("w1 w2"), text("w3 w4", **CACHED)]},
            {"role": "system", "content": "w5 w6"},
        ],
        "system": [
            text("x-anthropic-billing-header: cc_version=2.1.197.1c0; cc_entrypoint=sdk-cli;"),
            text("w7", **CACHED),
            text("w8 w9", **CACHED),
        ],
        "tools": [TOOL] if tools else [],
        "metadata": {"user_id": f'{{"device_id":"d","account_uuid":"","session_id":"{SESSION}"}}'},
        "max_tokens": 8,
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "stream": stream,
        **more,
    }


def title() -> dict[str, Any]:
    """The request for a conversation's title, beside its first turn in a terminal."""
    return turn(tools=False, output_config={"effort": "high", "format": TITLE})


def count() -> dict[str, Any]:
    """What `/context` asks for, of each part of a prompt by itself."""
    return {"messages": [{"role": "user", "content": "w1"}], "tools": [TOOL]}
