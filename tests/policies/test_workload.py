"""Names of workloads and sessions, from what agents already send."""

from __future__ import annotations

import pytest

from paceline.policies.workload import session_of, workload_of

OPENING = (b'"You are an agent."', b'"Fix the bug."')


@pytest.mark.parametrize(
    ("headers", "session"),
    [
        ({"x-claude-code-session-id": "1", "x-claude-code-agent-id": "2"}, "claude-code:1/2"),
        ({"x-claude-code-session-id": "1", "x-session-id": "9"}, "claude-code:1"),
        ({"thread-id": "t"}, "codex:t"),
        ({"x-dynamo-session-id": "d"}, "dynamo:d"),
        ({"x-session-id": "s", "x-claude-code-agent-id": "2"}, "generic:s"),
        ({"x-session-affinity": "f"}, "affinity:f"),
    ],
)
def test_one_header_schema_names_the_session(headers: dict[str, str], session: str) -> None:
    """The first family of headers that is present is used whole; families are never mixed."""
    assert session_of(cache_key=None, headers=headers, opening=OPENING) == session


def test_headers_go_before_the_body_and_the_body_before_the_opening() -> None:
    """Precedence: headers, then prompt_cache_key, then the fingerprint of the opening messages."""
    headers = {"x-session-id": "s"}
    assert session_of(cache_key="k", headers=headers, opening=OPENING) == "generic:s"
    assert session_of(cache_key="k", headers={}, opening=OPENING) == "key:k"
    found = session_of(cache_key=None, headers={}, opening=OPENING)
    assert found.startswith("opening:")
    assert found == session_of(cache_key=None, headers={}, opening=OPENING)
    assert found != session_of(cache_key=None, headers={}, opening=OPENING[::-1])
    assert session_of(cache_key=None, headers={}, opening=(b"", b"")) == ""


def test_conversations_that_begin_alike_are_told_apart_by_whom_they_are_for() -> None:
    """The end user is a part of the fingerprint, and no session by itself."""
    sessions = {
        session_of(cache_key=None, headers={}, opening=OPENING, end_user=user)
        for user in ("", "a", "b")
    }
    assert len(sessions) == 3
    assert session_of(cache_key=None, headers={}, opening=(b"", b""), end_user="a") == ""
    assert session_of(cache_key="k", headers={}, opening=OPENING, end_user="a") == "key:k"


def test_long_ids_are_cut() -> None:
    """An id cannot grow the engine's memory without bound."""
    assert len(session_of(cache_key="k" * 9999, headers={}, opening=())) < 300


def test_workloads_by_header_or_by_what_the_agent_is() -> None:
    """An explicit name wins; else system prompt and tools decide, the question does not."""
    assert workload_of(header="coding", system=b"s", tools=b"t") == "coding"
    auto = workload_of(header=None, system=b"s", tools=b"t")
    assert auto.startswith("auto-")
    assert auto != workload_of(header=None, system=b"st", tools=b"")
    assert workload_of(header="bad name\n", system=b"s", tools=b"t") == auto
    assert workload_of(header=None, system=b"", tools=b"") == ""
