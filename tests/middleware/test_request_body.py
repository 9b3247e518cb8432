"""What the proxy writes into a body, and what it never lets through."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.api_errors import ApiError
from paceline.middleware.request_body import PROTECTED, opening_of, view_body, with_fields

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
field_names = st.text() | st.sampled_from([*PROTECTED, "vllm_xargs", "model", "messages"])
bodies = st.dictionaries(field_names, json_values, max_size=6)
XARGS: dict[str, str | int] = {"paceline_tenant": "t", "paceline_record": 1}


def rewritten(body: bytes, *, allow: tuple[str, ...] = ()) -> Any:
    view = view_body(body)
    return json.loads(with_fields(body, view, xargs=XARGS, cache_salt="salt", allow=allow))


@given(bodies, st.sampled_from([None, 2]), st.sampled_from([b"", b" ", b"\n\t"]))
def test_only_our_fields_change(body: dict[str, Any], indent: int | None, space: bytes) -> None:
    """Whatever the body, the result is it without protected fields and with ours."""
    raw = space + json.dumps(body, indent=indent).encode() + space
    expected = {k: v for k, v in body.items() if k not in PROTECTED}
    theirs = body.get("vllm_xargs")
    kept = theirs if isinstance(theirs, dict) else {}
    ours = {k: v for k, v in kept.items() if not k.startswith("paceline_")} | XARGS
    assert rewritten(raw) == expected | {"vllm_xargs": ours, "cache_salt": "salt"}


def test_identity_cannot_be_forged() -> None:
    """A client's own paceline_ arguments, however they are spelled, lose to the proxy's."""
    forged = b'{"vllm_xargs":{"paceline_tenant":"other","top":1},"vllm\\u005fxargs":{"x":2}}'
    assert rewritten(forged)["vllm_xargs"] == {"x": 2, **XARGS}
    twice = b'{"vllm_xargs":{"x":1},"vllm_xargs":{"paceline_session":"other"}}'
    assert rewritten(twice)["vllm_xargs"] == XARGS


@pytest.mark.parametrize("name", PROTECTED)
def test_protected_fields_pass_only_where_allowed(name: str) -> None:
    """Each protected field is removed by default and kept for a tenant that may set it."""
    body = json.dumps({name: "mine", "model": "m"}).encode()
    escaped = body.replace(b"_", b"\\u005f") if b"_" in body else body
    expected = "salt" if name == "cache_salt" else None
    assert rewritten(body).get(name) == expected
    assert rewritten(escaped).get(name) == expected
    assert rewritten(body, allow=(name,))[name] == "mine"


@pytest.mark.parametrize("body", [b"", b"[]", b'"x"', b"{", b'{"a":1} {"b":2}', b"\xff"])
def test_bodies_that_are_no_objects_are_refused(body: bytes) -> None:
    """What is not one JSON object is answered with 400."""
    with pytest.raises(ApiError, match="not a JSON object") as error:
        view_body(body)
    assert error.value.status == 400


@pytest.mark.parametrize(
    ("fields", "sampled"),
    [
        ({"seed": 1}, True),
        ({"seed": 1, "temperature": 0.5}, True),
        ({"seed": 1, "temperature": 0}, False),
        ({"seed": 1, "temperature": 0.0}, False),
        ({"seed": None}, False),
        ({"temperature": 1}, False),
    ],
)
def test_seeded_sampling_is_recognised(fields: dict[str, Any], *, sampled: bool) -> None:
    """Only a seed together with a temperature other than 0 (the default is 1) counts."""
    assert view_body(json.dumps(fields).encode()).is_seeded_sampling is sampled


def test_opening_is_the_system_message_and_the_first_question() -> None:
    """Later turns of a conversation have the same opening; other shapes have none."""
    first = {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}
    later = {"messages": [*first["messages"], {"role": "assistant", "content": None}]}
    openings = [opening_of(view_body(json.dumps(body).encode())) for body in (first, later)]
    assert openings == [(b'"s"', b'"u"')] * 2
    for odd in ({}, {"messages": 3}, {"messages": [1]}, {"messages": []}):
        assert opening_of(view_body(json.dumps(odd).encode())) == (b"", b"")


@pytest.mark.parametrize("given", [None, False, True, ...])
@given(body=bodies)
def test_ids_are_asked_for_once_and_nothing_else_changes(body: dict[str, Any], given: Any) -> None:
    """Set where the client left it unset or off, left where it asked itself, never said twice."""
    body = {k: v for k, v in body.items() if k != "return_token_ids"}
    if given is not ...:
        body["return_token_ids"] = given
    raw = json.dumps(body).encode()
    view = view_body(raw)
    asked = with_fields(raw, view, xargs=XARGS, cache_salt="s", ask_token_ids=True)
    assert len(re.findall(rb'"return_token_ids":', asked)) == 1
    plain = json.loads(with_fields(raw, view, xargs=XARGS, cache_salt="s"))
    assert json.loads(asked) == plain | {"return_token_ids": True}
    assert view.asks_token_ids == (given is True)


@pytest.mark.parametrize(
    ("body", "num_choices", "can"),
    [
        ({}, 1, True),
        ({"n": None, "echo": None}, 1, True),
        ({"n": 3, "echo": False, "use_beam_search": False}, 3, True),
        ({"n": "3"}, 0, False),
        ({"n": -1}, 0, False),
        ({"echo": True}, 1, False),
        ({"echo": 1}, 1, False),
        ({"use_beam_search": True}, 1, False),
        ({"return_token_ids": "true"}, 1, False),
    ],
)
def test_where_ids_would_change_the_answer_they_are_not_asked_for(
    body: dict[str, Any], num_choices: int, can: bool
) -> None:
    """Echoes, beam searches and what cannot be read are left alone."""
    view = view_body(json.dumps(body).encode())
    assert (view.num_choices, view.can_be_asked_for_ids) == (num_choices, can)


def test_the_opening_is_the_same_in_each_turn() -> None:
    """System prompt and first message, wherever an API has them, without what moves."""
    say = [{"role": "user", "content": "hi"}]
    mark = {"cache_control": {"type": "ephemeral"}}
    system = [{"type": "text", "text": "Be brief."}]
    billed = [{"type": "text", "text": "x-anthropic-billing-header: cch=1"}, system[0] | mark]

    def opening(**fields: Any) -> tuple[bytes, bytes]:
        return opening_of(view_body(json.dumps(fields).encode()))

    compact = json.dumps(system, separators=(",", ":")).encode()
    assert opening(system=billed, messages=say) == (compact, b'"hi"')
    marked = [{"role": "user", "content": [{"type": "text", "text": "hi"} | mark]}]
    assert opening(messages=marked)[1] == b'[{"type":"text","text":"hi"}]'
    assert opening(instructions="Be brief.", input="hi") == (b'"Be brief."', b'"hi"')
    assert opening(input=[{"role": "developer", "content": "d"}, *say]) == (b'"d"', b'"hi"')
    assert opening(input=[1, 2]) == (b"", b"")
