"""Counting the tokens of a stream that tells them unasked: Anthropic's and the Responses API's.

Nothing is changed: what comes out is what came in. Anthropic's begins with what was read and ends
with what was said; a response's last event has both. Until then each event with a piece of the
reply counts as a token.
"""

from __future__ import annotations

from typing import Final

import msgspec

from paceline.middleware.relay import EventHold
from paceline.middleware.token_editing import split_events
from paceline.middleware.usage_editing import Usage, UsageMeter

USAGE: Final = b'"usage"'
PIECE: Final = b"delta\n"
"""Ends the name of an event that has a piece of a reply; never within data, where it is escaped."""
ENDING: Final = b"event: message_delta\n"
"""The one that has not."""
_DATA: Final = b"data:"


class _Part(msgspec.Struct):
    usage: Usage | None = None


class _Event(msgspec.Struct):
    usage: Usage | None = None
    message: _Part | None = None
    response: _Part | None = None


_events: Final = msgspec.json.Decoder(_Event)


class MeteredStream:
    """`EventHold` for such a stream.

    Args:
        meter: is told the numbers.
    """

    def __init__(self, meter: UsageMeter) -> None:
        self._hold = EventHold()
        self._meter = meter

    def push(self, chunk: bytes) -> bytes:
        """Take the next bytes; returns what may be passed on now, possibly nothing. O(bytes)."""
        return self._counted(self._hold.push(chunk))

    def rest(self) -> bytes:
        """What is still held when the engine ended the stream properly."""
        return self._counted(self._hold.rest())

    def broken_off(self) -> bytes:
        """Whole events that are still held when the engine broke off: none."""
        return b""

    def _counted(self, ready: bytes) -> bytes:
        pieces = ready.count(PIECE) - ready.count(ENDING)
        if pieces > 0:
            self._meter.chunk_came(0, pieces)
        if USAGE in ready:
            for event in split_events(ready):
                self._read(event)
        return ready

    def _read(self, event: bytes) -> None:
        try:
            told = _events.decode(event[event.find(_DATA) + len(_DATA) :])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return
        begun = None if told.message is None else told.message.usage
        if begun is not None:
            self._meter.told(0, begun.num_read, begun.num_said)
        ended = told.usage if told.response is None else told.response.usage
        if ended is not None:
            self._meter.finished(max(ended.num_read, self._meter.num_read), ended.num_said)
