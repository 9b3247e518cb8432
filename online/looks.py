"""Looks at the idle gate between parts of any work, and how long parts are. Needs no torch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol


class StoppedError(Exception):
    """The learner was asked to end; the part it was in is dropped."""


class Gate(Protocol):
    """Says when there is time for learning (`paceline.online.idle.IdleGate` is one)."""

    def is_open(self) -> bool:
        """Whether there is, now. Cheap."""

    def wait_until_open(self, stop: threading.Event) -> bool:
        """Wait for it; False if `stop` was set."""

    def busy_since(self) -> float | None:
        """`time.monotonic` since when somebody else needs the machine; None if that is not told."""


class Longest(NamedTuple):
    """Of parts of one kind, maybe of two different ones.

    Attributes:
        seconds: most time between two looks. Beside somebody who takes the core it is long although
            nothing was taken from them.
        processor_seconds: most time of processors between two looks, of all the process's threads.
    """

    seconds: float = 0.0
    processor_seconds: float = 0.0


class Reactions(NamedTuple):
    """Times that work went on behind the moment from which it should not have.

    Attributes:
        num: of parts that ended at a gate which requests had closed meanwhile.
        seconds: together, each from its request's beginning, or its own if that was later.
        longest_seconds: the longest of them.
    """

    num: int = 0
    seconds: float = 0.0
    longest_seconds: float = 0.0


class Looks:
    """Looks at a gate between parts of work, and stands still while it is closed.

    For one thread at a time.

    Args:
        gate: asked between parts.
        stop: ends the work at the next part.
        clock: monotonic seconds.
        processor_clock: seconds of processors that this process has taken.

    Attributes:
        num_parts: that were done.
        seconds: spent in them, without the waiting.
        num_pauses: times the work stood still.
        longest: parts by kind, since the beginning.
        reactions: how long parts went on beside a request.
    """

    def __init__(
        self,
        gate: Gate,
        stop: threading.Event,
        *,
        clock: Callable[[], float] = time.monotonic,
        processor_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self.num_parts = 0
        self.seconds = 0.0
        self.num_pauses = 0
        self.longest: dict[str, Longest] = {}
        self.reactions = Reactions()
        self._gate = gate
        self._stop = stop
        self._clock = clock
        self._processor_clock = processor_clock
        self._kind: str | None = None
        self._began_at = self._processor_began_at = 0.0
        self._recent = 0.0

    @contextmanager
    def running(self, kind: str) -> Iterator[None]:
        """Around work of a kind; outside of any nothing looks. Another kind may run within.

        Args:
            kind: what its parts are counted as.

        Raises:
            StoppedError: `stop` was set.
        """
        around = self._enter(kind)
        try:
            self._wait()
            yield
        finally:
            self._enter(around)

    @contextmanager
    def finishing(self, kind: str) -> Iterator[None]:
        """As `running`, around what has to be done also where `stop` is set."""
        around = self._enter(kind)
        self.rest()
        try:
            yield
        finally:
            self._enter(around)

    def pause(self) -> None:
        """A part has ended: wait while the gate is closed.

        Raises:
            StoppedError: `stop` was set.
        """
        if self._kind is not None:
            self._note()
            self._wait(is_working=True)

    def rest(self) -> None:
        """As `pause`, in what must not end halfway: once `stop` is set, without waiting."""
        if self._kind is None:
            return
        self._note()
        if not (self._stop.is_set() or self._gate.is_open()):
            self.num_pauses += 1
            self._note_reaction()
            self._gate.wait_until_open(self._stop)
        self._begin()

    def may_go_on(self) -> bool:
        """A part has ended: whether the next may begin, for who leaves off instead of waiting."""
        is_open = self._gate.is_open()
        if self._kind is not None:
            self._note()
            if not is_open:
                self._note_reaction()
            self._begin()
        return is_open and not self._stop.is_set()

    def take_longest(self) -> float:
        """Seconds of the longest part of any kind since the last call."""
        longest, self._recent = self._recent, 0.0
        return longest

    def _enter(self, kind: str | None) -> str | None:
        """Go over to another kind, None for no work; returns which it was."""
        if self._kind is not None:
            self._note()
        before, self._kind = self._kind, kind
        self._begin()
        return before

    def _begin(self) -> None:
        self._began_at = self._clock()
        self._processor_began_at = self._processor_clock()

    def _note(self) -> None:
        assert self._kind is not None
        seconds = self._clock() - self._began_at
        processor_seconds = self._processor_clock() - self._processor_began_at
        self.num_parts += 1
        self.seconds += seconds
        self._recent = max(self._recent, seconds)
        longest = self.longest.get(self._kind, Longest())
        if seconds > longest.seconds or processor_seconds > longest.processor_seconds:
            self.longest[self._kind] = Longest(
                max(seconds, longest.seconds), max(processor_seconds, longest.processor_seconds)
            )

    def _note_reaction(self) -> None:
        """The part that has just ended may have gone on beside a request."""
        since = self._gate.busy_since()
        if since is None:
            return
        seconds = self._clock() - max(since, self._began_at)
        num, total, longest = self.reactions
        self.reactions = Reactions(num + 1, total + seconds, max(longest, seconds))

    def _wait(self, *, is_working: bool = False) -> None:
        """Wait while the gate is closed; `is_working` behind a part, not before the first."""
        if self._stop.is_set():
            raise StoppedError
        if not self._gate.is_open():
            self.num_pauses += 1
            if is_working:
                self._note_reaction()
            if not self._gate.wait_until_open(self._stop):
                raise StoppedError
        self._begin()


def never() -> None:
    """What looks at no gate: where nobody else wants the machine."""
