"""Counts of tokens are read from an answer, and taken out where the client did not ask."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.middleware.request_body import view_body, with_fields
from paceline.middleware.token_editing import IdStream, Taken
from paceline.middleware.usage_editing import UsageMeter, UsageStream

HEAD = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1764000000,"model":"m"'
FINGERPRINT = b',"system_fingerprint":"vllm-0.32-tp1"'


def usage(said: int, *, details: bool = True) -> bytes:
    more = b',"completion_tokens_details":null' if details else b""
    return (
        b',"usage":{"prompt_tokens":9,"total_tokens":%d,"completion_tokens":%d' % (9 + said, said)
        + more
        + b"}"
    )


def chunk(text: str, said: int, *, ends: bool = False, index: int = 0, **shown: bool) -> bytes:
    """As vLLM writes it: `asked` has the usage so far, and the fingerprint is elsewhere."""
    reason = b'"stop","stop_reason":null' if ends else b"null"
    choice = b'{"index":%d,"delta":{"content":%b},"logprobs":null,"finish_reason":%b%b}' % (
        index,
        json.dumps(text).encode(),
        reason,
        b',"token_ids":[1,2]' if shown.get("ids") else b"",
    )
    asked = shown.get("asked", False)
    last = b"" if asked or not ends else FINGERPRINT
    return HEAD + b',"choices":[%b]' % choice + (usage(said) if asked else b"") + last + b"}\n\n"


LAST = HEAD + b',"choices":[]' + usage(3, details=False) + FINGERPRINT + b"}\n\n"
DONE = b"data: [DONE]\n\n"
TEXTS = ("a", 'b"usage":{"prompt_tokens":9}}', "é\n\n", '}\n\ndata: {"usage":null}')


def stream(*, asked: bool, last: bool, ids: bool = False) -> bytes:
    """A reply of three tokens and one that ends it, with or without usage."""
    events = [chunk(text, n, asked=asked, ids=ids) for n, text in enumerate(TEXTS)]
    ending = chunk("", 3, ends=True, asked=asked)
    if last and not asked:
        ending = ending.replace(FINGERPRINT, b"")
    return b"".join([*events, b": ping\n\n", ending, LAST if last else b"", DONE])


def pushed(data: bytes, cuts: Sequence[int], hold: Any) -> bytes:
    places = sorted({c % (len(data) + 1) for c in cuts})
    parts = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
    return b"".join([*(hold.push(part) for part in parts if part), hold.rest()])


class Ids:
    def __init__(self) -> None:
        self.taken: list[Taken] = []

    def take(self, taken: Taken) -> None:
        self.taken.append(taken)


EACH = b'"continuous_usage_stats":true'
views = {
    "nothing": b'{"stream":true}',
    "last": b'{"stream":true,"stream_options":{"include_usage":true}}',
    "each": b'{"stream":true,"stream_options":{"include_usage":true,%b}}' % EACH,
    "off": b'{"stream":true,"stream_options":{"include_usage":false,%b}}' % EACH,
}
cuttings = st.lists(st.integers(0, 10_000), max_size=12)


@given(cuttings, st.sampled_from(sorted(views)), st.booleans())
def test_however_a_stream_is_cut_the_client_gets_what_it_asked_for(
    cuts: list[int], asks: str, with_ids: bool
) -> None:
    """Byte for byte what the engine writes for the client's own options, ids taken out or not."""
    meter, ids = UsageMeter(), Ids()
    then = IdStream(ids, keeps=False) if with_ids else None
    got = pushed(
        stream(asked=True, last=True, ids=with_ids),
        cuts,
        UsageStream(meter, view_body(views[asks]), then),
    )
    expected = {
        "nothing": stream(asked=False, last=False),
        "off": stream(asked=False, last=False),
        "last": stream(asked=False, last=True),
        "each": stream(asked=True, last=True),
    }[asks]
    if with_ids:
        assert got.replace(b',"token_ids":null', b"") == expected
        assert b"".join(array for t in ids.taken for _, array in t.said) == b"[1,2]" * len(TEXTS)
    else:
        assert got == expected
    assert (meter.num_read, meter.num_said, meter.num_tokens) == (9, 3, 12)


def test_what_a_client_has_heard_is_known_while_it_is_said() -> None:
    """Who leaves in the middle is counted up to there."""
    meter = UsageMeter()
    hold = UsageStream(meter, view_body(views["nothing"]))
    assert not meter.is_known
    hold.push(chunk("a", 1, asked=True))
    assert (meter.is_known, meter.num_tokens) == (True, 10)
    hold.push(chunk("b", 7, asked=True))
    assert meter.num_tokens == 16


def test_several_choices_are_added_up() -> None:
    """vLLM says of each choice what that one has come to, and of all at the end."""
    meter = UsageMeter()
    hold = UsageStream(meter, view_body(b'{"stream":true,"n":2}'))
    got = hold.push(chunk("a", 5, asked=True) + chunk("b", 6, asked=True, index=1))
    assert got == chunk("a", 5) + chunk("b", 6, index=1)
    assert meter.num_tokens == 20
    hold.push(chunk("", 6, asked=True, ends=True) + chunk("c", 7, asked=True, index=1))
    assert meter.num_tokens == 22


def test_an_engine_that_tells_no_numbers_is_counted_by_its_chunks() -> None:
    """Nothing is taken out of it, and nothing is known for sure."""
    meter = UsageMeter()
    hold = UsageStream(meter, view_body(views["nothing"]))
    data = b"".join(chunk("a", 0) for _ in range(4)) + b"event: x\ndata: {}\n\n" + DONE
    assert hold.push(data) == data
    assert (meter.is_known, meter.num_said) == (False, 4)


def test_fields_are_taken_out_wherever_they_stand() -> None:
    """First, last or alone, with spaces and equal numbers elsewhere."""
    numbers = '{"prompt_tokens": 9, "completion_tokens": 2}'
    events = {
        f'{{"usage": {numbers}, "choices": [{{"index": 0}}]}}': '{"choices": [{"index": 0}]}',
        f'{{"a": {numbers}, "usage": {numbers}, "choices": [{{}}]}}': (
            f'{{"a": {numbers}, "choices": [{{}}]}}'
        ),
        f'{{"choices": [{{"usage": {numbers}}}], "usage" : {numbers} }}': (
            f'{{"choices": [{{"usage": {numbers}}}] }}'
        ),
    }
    for given_, expected in events.items():
        meter = UsageMeter()
        hold = UsageStream(meter, view_body(views["nothing"]))
        assert hold.push(f"data: {given_}\n\n".encode()) == f"data: {expected}\n\n".encode()
        assert meter.num_tokens == 11


def test_an_engine_that_breaks_off_leaves_the_chunk_that_ended_the_choice() -> None:
    """It waited for the numbers; the client gets it before the error."""
    hold = UsageStream(UsageMeter(), view_body(views["nothing"]))
    ending = chunk("", 3, ends=True, asked=True)
    assert hold.push(ending) == b""
    assert hold.broken_off() == chunk("", 3, ends=True).replace(FINGERPRINT, b"")
    assert hold.broken_off() == b""


@pytest.mark.parametrize(
    ("body", "num_tokens"),
    [
        (b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}', 7),
        (b'{"usage":{"prompt_tokens":3,"total_tokens":9}}', 9),
        (b'{"usage":null}', None),
        (b'{"usage":{"prompt_tokens":"many"}}', None),
        (b"not json", None),
        (b"[]", None),
    ],
)
def test_a_whole_answer_says_its_tokens(body: bytes, num_tokens: int | None) -> None:
    """Or nothing is known."""
    meter = UsageMeter()
    meter.read_whole(body)
    assert (meter.num_tokens if meter.is_known else None) == num_tokens


ASKED = {"include_usage": True, "continuous_usage_stats": True}


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        ({"stream": True}, ASKED),
        ({"stream": True, "stream_options": None}, ASKED),
        ({"stream": True, "stream_options": {"include_usage": False, "x": 1}}, {**ASKED, "x": 1}),
        ({"stream": True, "stream_options": ASKED}, ASKED),
        ({"stream": True, "stream_options": "wrong"}, "wrong"),
        ({"stream": False}, None),
        ({}, None),
    ],
)
def test_streams_are_asked_for_usage_and_nothing_else_is(body: dict[str, Any], sent: Any) -> None:
    """The client's other options stay; what is wrong with them the engine says."""
    raw = json.dumps(body | {"model": "m"}).encode()
    asked = with_fields(raw, view_body(raw), xargs={}, cache_salt="s", ask_usage=True)
    assert json.loads(asked).get("stream_options") == sent
    untouched = with_fields(raw, view_body(raw), xargs={}, cache_salt="s")
    assert json.loads(untouched).get("stream_options") == body.get("stream_options")


@pytest.mark.parametrize(
    ("body", "most"),
    [
        (b"{}", None),
        (b'{"max_tokens":7}', 7),
        (b'{"max_tokens":7,"max_completion_tokens":9,"n":2}', 18),
        (b'{"max_tokens":"all"}', None),
        (b'{"max_tokens":null}', None),
    ],
)
def test_what_a_request_may_say_at_most(body: bytes, most: int | None) -> None:
    """Over all choices; None if it does not tell."""
    assert view_body(body).most_said == most
