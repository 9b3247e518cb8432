"""Passing an engine's stream on, byte for byte, never leaving a client with half an event."""

from __future__ import annotations

from typing import Final

BORDERS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")
MAX_HELD_BYTES: Final = 16 * 1024 * 1024
"""A longer event is passed on in parts; holding it would let an engine fill our memory."""


class EventHold:
    """Holds back the unfinished event at the end of an event stream until its rest arrives.

    What `push` returns, joined, is always a prefix of what was pushed and ends with a whole event,
    so that an error event can follow it at any time.
    """

    def __init__(self) -> None:
        self._held = b""

    def push(self, chunk: bytes) -> bytes:
        """Take the next bytes; returns what may be passed on now, possibly nothing.

        O(chunk) when events come whole.
        """
        if not self._held and chunk.endswith(b"\n\n"):
            return chunk
        pending = self._held + chunk
        end = max(_end_of(pending, border) for border in BORDERS)
        if not end and len(pending) > MAX_HELD_BYTES:
            end = len(pending)
        self._held = pending[end:]
        return pending[:end]

    def rest(self) -> bytes:
        """What is still held when the engine ended the stream properly.

        It may lack the last empty line.
        """
        held, self._held = self._held, b""
        return held

    def broken_off(self) -> bytes:
        """Whole events that are still held when the engine broke off: none."""
        return b""


def _end_of(pending: bytes, border: bytes) -> int:
    position = pending.rfind(border)
    return position + len(border) if position >= 0 else 0
