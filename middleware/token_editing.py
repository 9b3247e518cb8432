"""Taking the token ids out of an engine's answer: a client that did not ask sees none of them.

An engine that is asked for ``return_token_ids`` (vLLM) puts arrays where it otherwise writes
``null``: the prompt's ids into the first chunk of a stream, each chunk's own into its choice, both
into a whole answer. The arrays are found without re-encoding anything and replaced by ``null`` in
place; every other byte stays. Chunks that exist only because ids were asked for (vLLM sends one
where a parser holds a token's text back) are left out.

What does not look like that is passed on as it is, and said to be odd: then nothing of the answer
may be recorded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec
import numpy as np

from paceline.middleware.relay import EventHold

ABSENT: Final = msgspec.Raw(b"")
NULL: Final = b"null"
MARK: Final = b'token_ids"'
"""Without it there is nothing to take out of an event; most of what an engine sends has it."""
WHOLE_PROMPT: Final = -1
"""Stands for every choice: the ids of a chat's prompt are told once."""

_BORDER: Final = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_DATA: Final = b"data:"
_LINE_ENDS: Final = b"\r\n"
_SPACE: Final = b" \r\n"

_TEXT: Final = rb'"(?:[^"\\]|\\.)*"'
_USUAL: Final = re.compile(
    rb'data: \{"id":"[\w-]*","object":"[\w.]*","created":\d+,"model":"([^"\\]*)",'
    rb'"choices":\[\{"index":(\d{1,4}),'
    rb'(?:"delta":\{"content":%b\},"logprobs":null,"finish_reason":null|'
    rb'"text":%b,"logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null),'
    rb'"token_ids":(\[[\d,]*\])\}\]\}\n\n' % (_TEXT, _TEXT)
)
"""The whole of a chunk as vLLM writes nearly all of them: a fifth of the time it takes to parse."""


class _Choice(msgspec.Struct):
    index: int = 0
    delta: msgspec.Raw = ABSENT
    logprobs: msgspec.Raw = ABSENT
    finish_reason: msgspec.Raw = ABSENT
    prompt_token_ids: msgspec.Raw = ABSENT
    token_ids: msgspec.Raw = ABSENT


class _Answer(msgspec.Struct):
    model: str = ""
    prompt_token_ids: msgspec.Raw = ABSENT
    choices: list[_Choice] = []


_answers: Final = msgspec.json.Decoder(_Answer)


@dataclass(slots=True)
class Taken:
    """What was found in one answer or one chunk of it.

    Attributes:
        model: name of the model that answered, "" if it does not say.
        prompts: JSON arrays of prompt ids by choice, `WHOLE_PROMPT` for all.
        said: JSON arrays of the ids that a choice has said, by choice.
        is_hidden: whether ids are withheld: ``null`` stands where they were asked for.
        is_odd: whether it could not be read.
    """

    model: str
    prompts: list[tuple[int, bytes]]
    said: list[tuple[int, bytes]]
    is_hidden: bool = False
    is_odd: bool = False


ODD: Final = Taken("", [], [], is_odd=True)


def edit_answer(body: bytes) -> tuple[bytes, Taken]:
    """An answer without its ids, and the ids. O(bytes).

    Args:
        body: a JSON object: a whole answer, or one chunk of a stream.
    """
    try:
        answer = _answers.decode(body)
        return _without_ids(body, answer)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
        return body, ODD


def edit_events(events: bytes) -> Iterator[tuple[bytes, Taken | None]]:
    """Each event as the client may see it, and what was found in it. O(bytes)."""
    for event in split_events(events):
        if MARK not in event:
            yield event, None
            continue
        payload = payload_of(event)
        if payload is None:
            yield event, ODD
            continue
        edited, taken = edit_answer(payload)
        if edited is payload:
            yield event, taken
        elif edited:
            end = event.rindex(payload)
            yield event[:end] + edited + event[end + len(payload) :], taken
        else:  # line ends before it belong to what came earlier
            yield event[: event.find(_DATA)], taken


def payload_of(event: bytes) -> bytes | None:
    """What an event says if it is one line of data and nothing else; else None. O(bytes)."""
    start = event.find(_DATA)
    payload = event[start + len(_DATA) :].strip(_SPACE)
    if start < 0 or event[:start].strip(_LINE_ENDS) or b"\n" in payload or b"\r" in payload:
        return None
    return payload


def split_events(events: bytes) -> Iterator[bytes]:
    """Events with the empty lines behind them; what is behind the last of those, if anything."""
    start = 0
    if b"\r" in events:
        for border in _BORDER.finditer(events):
            yield events[start : border.end()]
            start = border.end()
    else:  # as engines write them; finding is faster than matching
        while (end := events.find(b"\n\n", start)) >= 0:
            yield events[start : end + 2]
            start = end + 2
    if start < len(events):
        yield events[start:]


def _without_ids(body: bytes, answer: _Answer) -> tuple[bytes, Taken]:
    taken = Taken(answer.model, [], [])
    places: list[tuple[int, bytes]] = []
    array = bytes(answer.prompt_token_ids)
    if array and array != NULL:
        places.append((_place_of(answer.prompt_token_ids, array, body), array))
        taken.prompts.append((WHOLE_PROMPT, array))
    for choice in answer.choices:
        for raw, into in (
            (choice.prompt_token_ids, taken.prompts),
            (choice.token_ids, taken.said),
        ):
            array = bytes(raw)
            if array == NULL:
                taken.is_hidden = taken.is_hidden or into is taken.said
            elif array:
                places.append((_place_of(raw, array, body), array))
                into.append((choice.index, array))
    if not places:
        return body, taken
    if len(answer.choices) == 1 and not taken.prompts and _is_only_ids(answer.choices[0]):
        return b"", taken
    return _with_nulls(body, places), taken


def _place_of(raw: msgspec.Raw, array: bytes, body: bytes) -> int:
    """Where in `body` a field's value stands.

    Raises:
        ValueError: it is no array, or it is not to be found.
    """
    if not array.startswith(b"["):
        raise ValueError(f"token ids are {array[:40]!r}")
    place = body.find(array)
    if body.find(array, place + 1) < 0:
        return place  # it stands there once
    # A `Raw` is a view of the bytes it was decoded from.
    place = address_of(raw) - address_of(body)
    if body[place : place + len(array)] != array:
        raise ValueError("the parser's views do not point into the body")
    return place


def address_of(data: bytes | msgspec.Raw) -> int:
    """Where in memory it stands: a `Raw` is a view of the bytes that it was decoded from."""
    where: int = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    return where


def _is_only_ids(choice: _Choice) -> bool:
    """Whether an engine sends a chunk with that choice only for the ids in it."""
    nothing = (b"", NULL)
    return (
        bytes(choice.delta) == b"{}"
        and bytes(choice.finish_reason) in nothing
        and bytes(choice.logprobs) in nothing
    )


def _with_nulls(body: bytes, places: list[tuple[int, bytes]]) -> bytes:
    parts: list[bytes] = []
    end = 0
    for place, array in sorted(places):
        parts += (body[end:place], NULL)
        end = place + len(array)
    parts.append(body[end:])
    return b"".join(parts)


class TakesIds(Protocol):
    """Who is told what was found."""

    def take(self, taken: Taken) -> None:
        """Take what one event held."""


class IdStream:
    """`EventHold` for a stream with ids in it: what comes out has none.

    Args:
        taking: is told what was found in each event.
        keeps: leave the ids in: the client asked for them itself.
    """

    def __init__(self, taking: TakesIds, *, keeps: bool) -> None:
        self._hold = EventHold()
        self._taking = taking
        self._keeps = keeps

    def push(self, chunk: bytes) -> bytes:
        """Take the next bytes; returns what may be passed on now, possibly nothing."""
        ready = self._hold.push(chunk)
        usual = _USUAL.fullmatch(ready)
        if usual is None:
            return self._edit(ready) if ready else ready
        model, choice, array = usual.groups()
        self._taking.take(Taken(model.decode(errors="replace"), [], [(int(choice), array)]))
        start, end = usual.span(3)
        return ready if self._keeps else ready[:start] + NULL + ready[end:]

    def rest(self) -> bytes:
        """What is still held when the engine ended the stream properly."""
        return self._edit(self._hold.rest())

    def broken_off(self) -> bytes:
        """Whole events that are still held when the engine broke off: none."""
        return b""

    def _edit(self, ready: bytes) -> bytes:
        shown: list[bytes] = []
        for edited, taken in edit_events(ready):
            shown.append(edited)
            if taken is not None:
                self._taking.take(taken)
        return ready if self._keeps else b"".join(shown)
