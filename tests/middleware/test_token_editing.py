"""An answer with token ids, edited, is byte for byte the answer without them."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.middleware.token_editing import (
    _USUAL,
    WHOLE_PROMPT,
    IdStream,
    Taken,
    edit_answer,
)

# Text that looks like what is searched for, and keys of that name where they are not ids to edit.
TEXTS = st.sampled_from(
    [
        "",
        "a",
        "é\n\n",
        '"token_ids":[1]',
        '},"token_ids": [7]}',
        "data: [DONE]\r\n\r\n",
        "\\",
        "\U0001f6b4",
    ]
)
NOISE = st.sampled_from([None, {"token_ids": [5, 6], "prompt_token_ids": [1]}, [{"token_ids": []}]])
IDS = st.lists(st.integers(0, 200_000), max_size=6)


@dataclass
class Told:
    """Collects what an `IdStream` finds."""

    found: list[Taken] = field(default_factory=list)

    def take(self, taken: Taken) -> None:
        self.found.append(taken)

    def said(self, choice: int) -> list[int]:
        arrays = [a for t in self.found for index, a in t.said if index == choice]
        return [token for array in arrays for token in json.loads(array)]

    def prompts(self) -> list[tuple[int, list[int]]]:
        return [(index, json.loads(array)) for t in self.found for index, array in t.prompts]


@dataclass
class Event:
    """One event as an engine sends it asked and unasked."""

    asked: bytes
    unasked: bytes
    said: dict[int, list[int]] = field(default_factory=dict)


@st.composite
def chunks(draw: st.DrawFn) -> Event:
    """A chunk of a chat or of a completion, in some JSON spelling."""
    said = {0: draw(IDS)}
    choice: dict[str, Any] = {"index": 0, "token_ids": said[0], "text": draw(TEXTS)}
    only_ids = draw(st.booleans())
    if only_ids:
        choice |= {"delta": {}, "logprobs": None, "finish_reason": None}
    else:
        choice |= {"delta": {"content": draw(TEXTS)}, "extra": draw(NOISE)}
        if draw(st.booleans()):
            choice["prompt_token_ids"] = draw(IDS)
    body: dict[str, Any] = {"id": "x", "choices": [choice], "kv_transfer_params": draw(NOISE)}
    if not only_ids and draw(st.booleans()):
        body["prompt_token_ids"] = draw(IDS)
    null: dict[str, Any] = json.loads(json.dumps(body))
    for holder in (null, null["choices"][0]):
        for name in {"prompt_token_ids", "token_ids"} & holder.keys():
            holder[name] = None
    separators = draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    ascii_only, end = draw(st.booleans()), draw(st.sampled_from(["\n\n", "\r\n\r\n"]))

    def spell(value: Any) -> bytes:
        text = json.dumps(value, separators=separators, ensure_ascii=ascii_only)
        return f"data: {text}{end}".encode()

    return Event(spell(body), b"" if only_ids else spell(null), said)


@st.composite
def others(draw: st.DrawFn) -> Event:
    """What has no ids in it."""
    data = draw(
        st.sampled_from(
            [
                *(
                    b": ping\n\n",
                    b"data: [DONE]\n\n",
                    b"\n",
                    b"\r\n",
                    b"event: x\r\ndata: 1\r\n\r\n",
                ),
                b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n',
                b'data: {"error":{"message":"no"}}\n\n',
            ]
        )
    )
    return Event(data, data)


STREAMS = st.lists(chunks() | others(), max_size=8)


@given(STREAMS, st.lists(st.integers(0, 2000), max_size=12))
def test_however_a_stream_is_cut_it_comes_out_as_if_nobody_had_asked(
    events: list[Event], cuts: list[int]
) -> None:
    """Any chunking gives the unasked bytes and the same ids, and nothing is odd."""
    asked = b"".join(event.asked for event in events)
    told = Told()
    stream = IdStream(told, keeps=False)
    edges = [0, *sorted(min(cut, len(asked)) for cut in cuts), len(asked)]
    out = b"".join(stream.push(asked[a:b]) for a, b in itertools.pairwise(edges)) + stream.rest()
    assert out == b"".join(event.unasked for event in events)
    assert told.said(0) == [token for event in events for token in event.said.get(0, [])]
    assert not any(taken.is_odd for taken in told.found)


@given(STREAMS, st.integers(1, 50))
def test_a_client_that_asked_sees_all_of_it(events: list[Event], size: int) -> None:
    """With `keeps` the bytes are the engine's, and the ids are found all the same."""
    asked = b"".join(event.asked for event in events)
    told = Told()
    stream = IdStream(told, keeps=True)
    parts = [asked[at : at + size] for at in range(0, len(asked), size)]
    assert b"".join(map(stream.push, parts)) + stream.rest() == asked
    assert told.said(0) == [token for event in events for token in event.said.get(0, [])]


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_what_is_no_answer_passes_untouched(junk: bytes, cuts: list[int]) -> None:
    """Whatever an engine sends, nothing raises; without ids in it no byte changes."""
    told = Told()
    stream = IdStream(told, keeps=False)
    data = junk + b'\n\ndata: {"choices": 3, "token_ids": [1]}\n\n'
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    out = b"".join(stream.push(data[a:b]) for a, b in itertools.pairwise(edges)) + stream.rest()
    assert out == data
    assert told.found[-1].is_odd


def test_a_whole_answer_loses_its_ids_and_nothing_else() -> None:
    """Ids at the top and in choices become null; ids elsewhere and in text stay."""
    asked = (
        b'{"model":"m","kv_transfer_params":{"token_ids":[9]},"choices":[{"index":0,"message":'
        b'{"content":"\\"token_ids\\":[1]"},"token_ids": [ 1,2 ] ,"finish_reason":"stop"},'
        b'{"index":1,"token_ids":[]}],"prompt_token_ids":[3,4,5]}'
    )
    edited, taken = edit_answer(asked)
    assert edited == (
        b'{"model":"m","kv_transfer_params":{"token_ids":[9]},"choices":[{"index":0,"message":'
        b'{"content":"\\"token_ids\\":[1]"},"token_ids": null ,"finish_reason":"stop"},{"index":1,'
        b'"token_ids":null}],"prompt_token_ids":null}'
    )
    assert taken.model == "m"
    assert taken.prompts == [(WHOLE_PROMPT, b"[3,4,5]")]
    assert taken.said == [(0, b"[ 1,2 ]"), (1, b"[]")]
    assert not taken.is_hidden


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"choices":[{"token_ids":',
        b'{"choices":[{"token_ids":7}]}',
        b'{"choices":[{"index":"0","token_ids":[1]}]}',
        b'{"choices":[{"token_ids":[1]}]}\xff',
    ],
)
def test_an_answer_that_cannot_be_read_is_left_alone(body: bytes) -> None:
    """It is passed on as it is and said to be odd."""
    edited, taken = edit_answer(body)
    assert edited == body
    assert taken.is_odd


def test_ids_that_are_withheld_are_noticed() -> None:
    """Null where ids were asked for (vLLM hides those of hidden reasoning)."""
    _, taken = edit_answer(b'{"choices":[{"index":0,"delta":{"content":"x"},"token_ids":null}]}')
    assert taken.is_hidden


@given(
    st.text(max_size=30) | TEXTS,
    IDS,
    st.integers(0, 12),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["m", "org/m", "é"]),
)
def test_the_usual_chunk_is_read_as_any_other(
    text: str, ids: list[int], choice: int, is_chat: bool, ascii_only: bool, model: str
) -> None:
    """The short way for what vLLM mostly writes gives what parsing it gives."""
    said: dict[str, Any] = {"delta": {"content": text}} if is_chat else {"text": text}
    said = {"index": choice, **said, "logprobs": None, "finish_reason": None}
    if not is_chat:
        said |= {"stop_reason": None, "prompt_token_ids": None}
    said["token_ids"] = ids
    head = {"id": "chatcmpl-pace-0a", "object": "chat.completion.chunk", "created": 17}
    body = json.dumps(
        head | {"model": model, "choices": [said]},
        separators=(",", ":"),
        ensure_ascii=ascii_only,
    ).encode("utf-8", "surrogatepass" if ascii_only else "replace")
    told = Told()
    event = b"data: " + body + b"\n\n"
    assert _USUAL.fullmatch(event) is not None or b"\\" in json.dumps(model).encode()
    edited, taken = edit_answer(body)
    assert IdStream(told, keeps=False).push(event) == b"data: " + edited + b"\n\n"
    assert told.found == [taken]
    assert IdStream(Told(), keeps=True).push(event) == event
