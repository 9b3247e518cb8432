"""Naming the kind of work and the conversation a request belongs to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

WORKLOAD_HEADER: Final = "x-paceline-workload"
DIGEST_BYTES: Final = 8
MAX_ID_LENGTH: Final = 200
_WORKLOAD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class HeaderSchema:
    """The headers of one family of agents.

    Attributes:
        name: whose they are.
        session: header with the conversation's id.
        agent: header with the id of the agent within it, "" if there is none.
    """

    name: str
    session: str
    agent: str = ""


HEADER_SCHEMAS: Final = (
    HeaderSchema("claude-code", "x-claude-code-session-id", "x-claude-code-agent-id"),
    HeaderSchema("codex", "thread-id"),
    HeaderSchema("dynamo", "x-dynamo-session-id"),
    HeaderSchema("generic", "x-session-id"),
    HeaderSchema("affinity", "x-session-affinity"),
)
"""In order of precedence.

The first schema whose session header is present is used, never a mix of two.
"""


def session_of(
    *,
    cache_key: str | None,
    headers: Mapping[str, str],
    opening: Sequence[bytes],
    end_user: str = "",
) -> str:
    """Id of the conversation a request belongs to, "" if nothing tells.

    One family of headers first, then the body's ``prompt_cache_key`` (several conversations may
    have one key), then a fingerprint of the conversation's opening messages: a plain SDK agent
    repeats them in every turn.

    Args:
        cache_key: the body's field, None if absent.
        headers: request headers, names in lower case.
        opening: the leading system message and the first user message, as they stand in the body.
        end_user: whom it is asked for, "" if nothing tells; conversations that begin alike are told
            apart by it.
    """
    for schema in HEADER_SCHEMAS:
        session = headers.get(schema.session)
        if session:
            agent = headers.get(schema.agent, "") if schema.agent else ""
            return f"{schema.name}:{session[:MAX_ID_LENGTH]}" + (
                f"/{agent[:MAX_ID_LENGTH]}" if agent else ""
            )
    if cache_key:
        return f"key:{cache_key[:MAX_ID_LENGTH]}"
    if not any(opening):
        return ""
    return f"opening:{fingerprint([*opening, end_user.encode()] if end_user else opening)}"


def workload_of(*, header: str | None, system: bytes, tools: bytes) -> str:
    """Name of the kind of work, "" if nothing tells.

    Args:
        header: value of `WORKLOAD_HEADER`, None if absent; ignored unless letters, digits and
            ``_.-``, at most 64.
        system: the system prompt as it stands in the body.
        tools: the tool schemas as they stand in the body.
    """
    if header is not None and _WORKLOAD.fullmatch(header):
        return header
    return f"auto-{fingerprint((system, tools))}" if system or tools else ""


def fingerprint(parts: Sequence[bytes]) -> str:
    """Short stable digest of some byte strings, order and borders included. O(bytes)."""
    digest = blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
