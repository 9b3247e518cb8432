"""Giving a stream a shape that tells less of what is in it: when bytes leave, and how many.

Speculation makes sizes and times of a stream's packets depend on what is said (arXiv 2411.01076):
an engine sends several tokens at once wherever drafts were right. Here events wait for the next
tick of a grid that begins with the request (``aggregate``), and each tick has the same number of
bytes (``padded``). No I/O and no clock: `paceline.middleware.shaped_send` has both.
"""

from __future__ import annotations

import math
import re
from collections import deque
from dataclasses import dataclass
from typing import Final

from paceline.middleware.relay import BORDERS

BUCKETS: Final = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
"""Bytes that a tick of a padded stream may have."""
COMMENT_BYTES: Final = 1024
"""Longest line of filler: some clients bound a line."""
LOGPROB_SHARE: Final = 3
"""A token's log probability and each alternative to it take up to a third of an event more."""
JSON_SPACE: Final = b" "
_ANTHROPIC_ERROR: Final = b'{"type":"error"'

_COMMENT: Final = b":" + b" " * (COMMENT_BYTES - 2) + b"\n"
_CLOSING: Final = (
    b"event: message_stop\n",
    b"event: response.completed\n",
    b"event: response.incomplete\n",
    b"event: response.failed\n",
)
"""How the last event of a stream begins that does not end with ``data: [DONE]``."""
_DONE: Final = re.compile(rb"(?<![^\r\n])data: ?\[DONE\](?:\n\n|\r\n\r\n|\r\r)\Z")


@dataclass(frozen=True, slots=True)
class Grid:
    """The ticks at which one answer may be written.

    Attributes:
        start: time of tick 0: when the request was there.
        interval: seconds between two ticks.
    """

    start: float
    interval: float

    def next_tick(self, now: float, last: int) -> int:
        """The first tick after `now` that also comes after tick `last`.

        Ticks that have passed meanwhile are left out, never made up for.
        """
        return max(last + 1, math.floor((now - self.start) / self.interval) + 1)

    def time_of(self, tick: int) -> float:
        """When a tick is."""
        return self.start + tick * self.interval


@dataclass(slots=True)
class ShapingTotals:
    """What shaping one answer took.

    Attributes:
        num_ticks: writes.
        num_padding: bytes of filler.
        num_held: pieces, as they came, that waited for a tick.
        held_seconds: how long they did, together.
    """

    num_ticks: int = 0
    num_padding: int = 0
    num_held: int = 0
    held_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Tick:
    """What is written at one tick.

    Attributes:
        data: bytes to write, possibly none.
        num_padding: how many of them are filler.
        is_last: whether the stream ends with them.
    """

    data: bytes
    num_padding: int = 0
    is_last: bool = False


class TickQueue:
    """Bytes of one event stream that wait for their tick.

    Without filler, what comes out is what went in, byte for byte. Filler are comments between
    events, which every parser of event streams ignores.

    Attributes:
        totals: what has been taken so far.

    Args:
        bytes_per_tick: size of each tick; None sends what there is, and no filler.
        round_ticks: with a size, the number of the last tick is a multiple of it. The event that
            ends a stream (``data: [DONE]``) waits for that tick: a client that leaves when it has
            read it would tell the time otherwise.
    """

    def __init__(self, *, bytes_per_tick: int | None = None, round_ticks: int = 1) -> None:
        self.totals = ShapingTotals()
        self._size = bytes_per_tick
        self._round_ticks = round_ticks
        self._pending = bytearray()
        self._closing = b""
        self._ended = False
        self._inside_event = False
        self._num_pushed = 0
        self._num_taken = 0
        self._arrivals: deque[tuple[int, float]] = deque()

    @property
    def num_pending(self) -> int:
        """Bytes that wait."""
        return len(self._pending) + len(self._closing)

    @property
    def is_due(self) -> bool:
        """Whether the next tick has something to say or to end."""
        return bool(self._pending) or self._ended

    def push(self, data: bytes, now: float) -> None:
        """Take further bytes, as a rule whole events. Amortised O(bytes)."""
        self._arrived(len(data), now)
        if self._size is None:
            self._pending += data
            return
        if self._closing:  # it was not the end
            self._pending += self._closing
            self._closing = b""
        last = _last_event(data)
        self._closing = data[last:]
        data = data[:last]
        if data:
            self._pending += data
            self._inside_event = not data.endswith(BORDERS)

    def end(self, data: bytes, now: float) -> None:
        """Take the last bytes; they need not end an event."""
        self._arrived(len(data), now)
        self._ended = True
        if self._size is None or self._inside_event:
            self._pending += self._closing + data
            self._closing = b""
        else:
            self._closing += data

    def take(self, tick: int, now: float) -> Tick:
        """What tick number `tick` has to write; O(its bytes)."""
        taken = self._take_all() if self._size is None else self._take_padded(tick, self._size)
        self._count(taken, now)
        return taken

    def _take_all(self) -> Tick:
        data = bytes(self._pending)
        self._pending.clear()
        return Tick(data, is_last=self._ended)

    def _take_padded(self, tick: int, size: int) -> Tick:
        room = size - len(self._pending)
        if room < 0 or self._inside_event:
            return self._take_part(size)
        if self._ended:
            ticks = max(1, math.ceil(len(self._closing) / size))
            first = len(self._closing) - (ticks - 1) * size
            if first <= room and (tick + ticks - 1) % self._round_ticks == 0:
                return self._begin_closing(room, first)
        data = bytes(self._pending) + filler(room)
        self._pending.clear()
        return Tick(data, num_padding=room)

    def _begin_closing(self, room: int, first: int) -> Tick:
        """All that waits, and so much of the closing bytes that the rest fills whole ticks."""
        data = bytes(self._pending) + filler(room - first) + self._closing[:first]
        self._pending = bytearray(self._closing[first:])
        self._closing = b""
        # what is left may not be parted by filler any more
        self._inside_event = True
        return Tick(data, num_padding=room - first, is_last=not self._pending)

    def _take_part(self, size: int) -> Tick:
        """A tick full of what waits.

        Within an event that came in parts there is no place for filler: it waits until the tick can
        be filled, and only a stream that ends within it ends with a shorter one.
        """
        if len(self._pending) < size and not self._ended:
            return Tick(b"")
        data = bytes(self._pending[:size])
        del self._pending[:size]
        return Tick(data, is_last=self._ended and not self.num_pending)

    def _arrived(self, num_bytes: int, now: float) -> None:
        if num_bytes:
            self._num_pushed += num_bytes
            self._arrivals.append((self._num_pushed, now))

    def _count(self, taken: Tick, now: float) -> None:
        totals = self.totals
        totals.num_ticks += bool(taken.data)
        totals.num_padding += taken.num_padding
        self._num_taken += len(taken.data) - taken.num_padding
        while self._arrivals and self._arrivals[0][0] <= self._num_taken:
            totals.held_seconds += now - self._arrivals.popleft()[1]
            totals.num_held += 1


def _last_event(data: bytes) -> int:
    """Where the event begins that ends the stream; the end of the data if it has none."""
    done = _DONE.search(data, max(0, len(data) - 32))
    if done is not None:
        return done.start()
    start = data.rfind(b"\n\n", 0, max(len(data) - 2, 0)) + 2
    start = start if start > 1 else 0
    return start if data.startswith(_CLOSING, start) and data.endswith(b"\n\n") else len(data)


def filler(num_bytes: int) -> bytes:
    """Exactly so many bytes that mean nothing between two events.

    Comment lines of 1 KiB at most, then an empty line: clients that split at empty lines see a
    block that holds no event.
    """
    if not num_bytes:
        return b""
    whole, rest = divmod(num_bytes - 1, COMMENT_BYTES)
    first = b"\n" if rest == 1 else _COMMENT[: rest - 1] + b"\n" if rest else b""
    return first + _COMMENT * whole + b"\n"


def bucket_for(at_least: int, *, num_choices: int = 1, num_logprobs: int | None = None) -> int:
    """Bytes of each tick of a stream, chosen once, by the form that was asked for.

    Never by what is said: a size that followed the reply would tell of it. The smallest of
    `BUCKETS` that holds `at_least` for each of the choices, and a third more for each log
    probability of a token; the largest where none does.

    Args:
        at_least: bytes of a tick of a plain stream.
        num_choices: replies that are written side by side, 0 for an unknown number.
        num_logprobs: alternatives whose log probabilities go with each token, None for none at all.
    """
    parts = LOGPROB_SHARE + (0 if num_logprobs is None else num_logprobs + 1)
    wanted = at_least * max(num_choices, 1) * parts / LOGPROB_SHARE
    return next((size for size in BUCKETS if size >= wanted), BUCKETS[-1])


def padded_json(body: bytes, at_least: int) -> bytes:
    """JSON with spaces behind it, up to `at_least` times a power of two. O(bytes)."""
    size = at_least
    while size < len(body):
        size *= 2
    return body.ljust(size, JSON_SPACE)


def as_event(body: bytes) -> bytes:
    """A whole answer as one event, for a client that has been promised a stream."""
    lines = body.splitlines()
    name = b"event: error\n" if body.startswith(_ANTHROPIC_ERROR) else b""
    return name + b"".join(b"data: " + line + b"\n" for line in lines) + b"\n"
