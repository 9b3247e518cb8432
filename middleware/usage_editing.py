"""Counting the tokens of an answer, and taking the counts out where a client did not ask for them.

A whole answer says its usage. A stream says it when asked (``stream_options``): vLLM, and the
embedded engine, with ``continuous_usage_stats`` in every chunk, and in one chunk of its own before
the end. Where the client did not ask, both are taken out again and every other byte stays. vLLM
writes ``system_fingerprint`` into that last chunk if there is one, else into the chunk that ends
the choice; it is put back there: such a chunk waits for the one that follows it at once.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

import msgspec

from paceline.middleware.relay import EventHold
from paceline.middleware.request_body import BodyView
from paceline.middleware.token_editing import address_of, payload_of, split_events

ABSENT: Final = msgspec.Raw(b"")
NOTHING: Final = (b"", b"null")
USAGE: Final = b'"usage"'
GOING_ON: Final = b'"finish_reason":null'
_SPACE: Final = b" \t\r\n"

_USUAL: Final = re.compile(
    rb',"usage":\{"prompt_tokens":(\d+),"total_tokens":\d+,"completion_tokens":(\d+)'
    rb'(?:,"completion_tokens_details":null)?\}\}\n\n\Z'
)
"""The end of a chunk as vLLM writes nearly all of them: it need not be parsed."""
_USUAL_BYTES: Final = 200


class Usage(msgspec.Struct):
    """An answer's usage, in the words of OpenAI's older endpoints or of the two newer APIs.

    Anthropic's ``input_tokens`` are those beside what its cache read and wrote.
    """

    prompt_tokens: int = 0
    completion_tokens: int | None = None
    total_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None

    @property
    def num_read(self) -> int:
        """Tokens of the prompt."""
        if self.input_tokens is None:
            return self.prompt_tokens
        cached = (self.cache_read_input_tokens or 0) + (self.cache_creation_input_tokens or 0)
        return self.input_tokens + cached

    @property
    def num_said(self) -> int:
        """Tokens of the replies."""
        said = self.completion_tokens if self.output_tokens is None else self.output_tokens
        if said is not None:
            return said
        return max((self.total_tokens or 0) - self.num_read, 0)


class _Choice(msgspec.Struct):
    index: int = 0
    finish_reason: msgspec.Raw = ABSENT


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: msgspec.Raw = ABSENT
    system_fingerprint: msgspec.Raw = ABSENT


class _Whole(msgspec.Struct):
    usage: Usage | None = None


_chunks: Final = msgspec.json.Decoder(_Chunk)
_usages: Final = msgspec.json.Decoder(Usage)
_wholes: Final = msgspec.json.Decoder(_Whole)


class UsageMeter:
    """Tokens that one answer has told of so far.

    Attributes:
        num_read: tokens of the prompt.
        is_known: whether anything is known.
    """

    def __init__(self) -> None:
        self.num_read = 0
        self.is_known = False
        self._said: dict[int, int] = {}
        self._sum = 0

    @property
    def num_said(self) -> int:
        """Tokens of the replies; of a stream that tells no numbers, its chunks."""
        return max(self._sum, sum(self._said.values()))

    @property
    def num_tokens(self) -> int:
        """Tokens read and said."""
        return self.num_read + self.num_said

    def read_whole(self, body: bytes) -> None:
        """Take the numbers of a whole answer, if it has any. O(bytes)."""
        try:
            usage = _wholes.decode(body).usage
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        if usage is not None:
            self.finished(usage.num_read, usage.num_said)

    def read_events(self, events: bytes) -> None:
        """Take the numbers of some whole events of a stream, if they have any. O(bytes)."""
        for event in split_events(events):
            payload = payload_of(event)
            if payload is not None and USAGE in payload:
                self.read_whole(payload)

    def told(self, choice: int, num_read: int, num_said: int) -> None:
        """A choice says what it has come to."""
        self.is_known = True
        self.num_read = max(self.num_read, num_read)
        self._said[choice] = num_said

    def finished(self, num_read: int, num_said: int) -> None:
        """The answer says what all of it came to."""
        self.is_known = True
        self.num_read, self._sum = num_read, num_said
        self._said.clear()

    def chunk_came(self, choice: int, number: int = 1) -> None:
        """So many chunks without numbers: each at least a token."""
        self._said[choice] = self._said.get(choice, 0) + number


class Hold(Protocol):
    """What passes a stream on in whole events."""

    def push(self, chunk: bytes) -> bytes:
        """Take the next bytes; returns what may be passed on now, possibly nothing."""

    def rest(self) -> bytes:
        """What is still held at the end."""

    def broken_off(self) -> bytes:
        """Whole events that are still held when the engine broke off."""


class UsageStream:
    """`EventHold` for a stream that was asked for usage: what comes out has what the client wanted.

    Args:
        meter: is told the numbers.
        view: the client's request.
        then: what comes out goes through this, if given.
    """

    def __init__(self, meter: UsageMeter, view: BodyView, then: Hold | None = None) -> None:
        self._hold = EventHold()
        self._meter = meter
        self._keeps_last, self._keeps_each = view.asks_usage
        self._is_single = view.num_choices == 1
        self._then = then
        self._ending = b""  # the chunk that ended the only choice, until the next has come

    def push(self, chunk: bytes) -> bytes:
        """Take the next bytes; returns what may be passed on now, possibly nothing. O(bytes)."""
        shown = self._edit(self._hold.push(chunk))
        if self._then is None or not shown:
            return shown
        return self._then.push(shown)

    def rest(self) -> bytes:
        """What is still held when the engine ended the stream properly."""
        shown = self._edit(self._hold.rest()) + self._released()
        if self._then is None:
            return shown
        return (self._then.push(shown) if shown else b"") + self._then.rest()

    def broken_off(self) -> bytes:
        """Whole events that are still held when the engine broke off."""
        shown = self._released()
        return self._then.push(shown) if self._then is not None and shown else shown

    def _edit(self, ready: bytes) -> bytes:
        if not ready:
            return ready
        usual = self._usual(ready)
        if usual is not None:
            self._meter.told(0, int(usual[1]), int(usual[2]))
            return ready if self._keeps_each else ready[: usual.start()] + b"}\n\n"
        return b"".join([self._edited(event) for event in split_events(ready)])

    def _usual(self, ready: bytes) -> re.Match[bytes] | None:
        """Whether it is one chunk that goes on, of the only choice."""
        if not self._is_single or self._ending or not ready.startswith(b"data: {"):
            return None
        if GOING_ON not in ready or ready.find(b"\n\n") != len(ready) - 2:
            return None
        return _USUAL.search(ready, max(len(ready) - _USUAL_BYTES, 0))

    def _edited(self, event: bytes) -> bytes:
        """The event as the client may see it, and what had waited for it before it."""
        payload = payload_of(event)
        if payload is None or not payload.startswith(b"{"):
            return self._released() + event
        try:
            chunk = _chunks.decode(payload)
            numbers = bytes(chunk.usage)
            usage = None if numbers in NOTHING else _usages.decode(numbers)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return self._released() + event
        choices = chunk.choices or []
        self._count(choices, usage)
        if usage is not None and not choices:
            if self._keeps_last:
                return self._released() + event
            return self._released(bytes(chunk.system_fingerprint))
        if usage is not None and not self._keeps_each:
            event = _without(event, payload, chunk.usage)
        before = self._released()
        if self._ends(choices) and not self._keeps_last:
            self._ending = event
            return before
        return before + event

    def _count(self, choices: list[_Choice], usage: Usage | None) -> None:
        if usage is None:
            for choice in choices:
                self._meter.chunk_came(choice.index)
        elif not choices:
            self._meter.finished(usage.num_read, usage.num_said)
        elif len(choices) == 1:
            self._meter.told(choices[0].index, usage.num_read, usage.num_said)

    def _ends(self, choices: list[_Choice]) -> bool:
        return (
            self._is_single and len(choices) == 1 and bytes(choices[0].finish_reason) not in NOTHING
        )

    def _released(self, fingerprint: bytes = b"") -> bytes:
        """What waited, with the fingerprint that would have been in it."""
        event, self._ending = self._ending, b""
        if not event or fingerprint in NOTHING:
            return event
        end = event.rindex(b"}")
        return event[:end] + b',"system_fingerprint":' + fingerprint + event[end:]


def _without(event: bytes, payload: bytes, value: msgspec.Raw) -> bytes:
    """An event without a field of its object and the comma that belongs to it."""
    numbers = bytes(value)
    place = payload.find(numbers)
    if payload.find(numbers, place + 1) >= 0:
        place = address_of(value) - address_of(payload)
    start = payload.rindex(USAGE, 0, place)
    end = place + len(numbers)
    before = payload[:start].rstrip(_SPACE)
    if before.endswith(b","):
        edited = before[:-1] + payload[end:]
    else:  # it is the object's first field
        edited = payload[:start] + payload[end:].lstrip(_SPACE).removeprefix(b",").lstrip(_SPACE)
    at = event.rindex(payload)
    return event[:at] + edited + event[at + len(payload) :]
