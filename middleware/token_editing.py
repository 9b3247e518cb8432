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


def edit_events(events: bytes) -> Iterator[tuple[bytes, bytes, Taken | None]]:
    """Each event as it came, as the client may see it, and what was found in it. O(bytes).

    Joined, what came is `events`.
    """
    for event in _split(events):
        if MARK not in event:
            yield event, event, None
            continue
        line = event.strip(_LINE_ENDS)
        payload = line[len(_DATA) :].lstrip(b" ")
        if not line.startswith(_DATA) or b"\n" in payload or b"\r" in payload:
            yield event, event, ODD
            continue
        edited, taken = edit_answer(payload)
        if edited is payload:
            yield event, event, taken
            continue
        start = event.index(_DATA)  # line ends before it belong to what came earlier
        if edited:
            end = event.rindex(payload)
            yield event, event[:end] + edited + event[end + len(payload) :], taken
        else:
            yield event, event[:start], taken


def _split(events: bytes) -> Iterator[bytes]:
    """Events with the empty lines behind them; what is behind the last of those, if anything."""
    if events.find(b"\n\n") == len(events) - 2 and b"\r" not in events:
        yield events  # the usual case: one event
        return
    start = 0
    for border in _BORDER.finditer(events):
        yield events[start : border.end()]
        start = border.end()
    if start < len(events):
        yield events[start:]


def _without_ids(body: bytes, answer: _Answer) -> tuple[bytes, Taken]:
    taken = Taken(answer.model, [], [])
    spans: list[tuple[int, int]] = []
    origin = _address(body)

    def take(raw: msgspec.Raw, choice: int, into: list[tuple[int, bytes]]) -> None:
        array = bytes(raw)
        if array.startswith(b"["):
            start = _address(raw) - origin
            if body[start : start + len(array)] != array:
                raise ValueError("the parser's views do not point into the body")
            spans.append((start, start + len(array)))
            into.append((choice, array))
        elif array and array != NULL:
            raise ValueError(f"token ids are {array[:40]!r}")

    take(answer.prompt_token_ids, WHOLE_PROMPT, taken.prompts)
    for choice in answer.choices:
        take(choice.prompt_token_ids, choice.index, taken.prompts)
        take(choice.token_ids, choice.index, taken.said)
        taken.is_hidden = taken.is_hidden or bytes(choice.token_ids) == NULL
    if not spans:
        return body, taken
    if _is_only_ids(answer):
        return b"", taken
    return _with_nulls(body, spans), taken


def _is_only_ids(answer: _Answer) -> bool:
    """Whether an engine sends such a chunk only for the ids in it."""
    if len(answer.choices) != 1 or bytes(answer.prompt_token_ids).startswith(b"["):
        return False
    choice = answer.choices[0]
    nothing = (b"", NULL)
    return (
        bytes(choice.delta) == b"{}"
        and bytes(choice.finish_reason) in nothing
        and bytes(choice.logprobs) in nothing
    )


def _with_nulls(body: bytes, spans: list[tuple[int, int]]) -> bytes:
    parts: list[bytes] = []
    end = 0
    for start, stop in sorted(spans):
        parts += (body[end:start], NULL)
        end = stop
    return b"".join([*parts, body[end:]])


def _address(data: bytes | msgspec.Raw) -> int:
    """Where some bytes lie; a `Raw` is a view of the bytes it was decoded from."""
    where: int = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    return where


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
        return self._edit(ready) if ready else ready

    def rest(self) -> bytes:
        """What is still held when the engine ended the stream properly."""
        return self._edit(self._hold.rest())

    def _edit(self, ready: bytes) -> bytes:
        shown: list[bytes] = []
        for event, edited, taken in edit_events(ready):
            shown.append(event if self._keeps else edited)
            if taken is not None:
                self._taking.take(taken)
        return shown[0] if len(shown) == 1 else b"".join(shown)
