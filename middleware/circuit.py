"""A circuit breaker: who fails again and again is left alone for a while, then tried once.

Closed lets requests through. After so many failures in a row it opens: nothing goes through until a
backoff has passed. Then it is half open: one request goes through as a trial; it closes the circuit
or opens it again, for twice as long (M. Nygard, "Release It!", 2007). The backoff is drawn from its
upper half, so that several proxies do not come back at the same moment.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Final

MAX_DOUBLINGS: Final = 16


class CircuitState(StrEnum):
    """Whether requests go through."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


class CircuitBreaker:
    """The breaker of one engine. Pure but for its clock.

    Args:
        num_failures: failures in a row that open it.
        backoff_seconds: longest first time for which it stays open.
        max_backoff_seconds: what doubling it ends at.
        on_change: called with each new state.
        clock: monotonic seconds.
        rng: draws the backoff.
    """

    def __init__(
        self,
        *,
        num_failures: int = 3,
        backoff_seconds: float = 1.0,
        max_backoff_seconds: float = 30.0,
        on_change: Callable[[CircuitState], None] = lambda _state: None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._most_failures = num_failures
        self._backoff_seconds = backoff_seconds
        self._max_backoff_seconds = max_backoff_seconds
        self._on_change = on_change
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311  spreads load, no secret
        self._state = CircuitState.CLOSED
        self._num_failures = 0
        self._num_openings = 0
        self._closes_at = 0.0
        self._is_tried = False

    def __repr__(self) -> str:
        return f"CircuitBreaker({self.state}, {self._num_failures} failures)"

    @property
    def state(self) -> CircuitState:
        """Its state now; open becomes half open when the backoff has passed. O(1)."""
        if self._state is CircuitState.OPEN and self._clock() >= self._closes_at:
            self._is_tried = False
            self._become(CircuitState.HALF_OPEN)
        return self._state

    @property
    def permits(self) -> bool:
        """Whether a request may go through: closed, or half open with no trial under way."""
        state = self._state
        if state is CircuitState.CLOSED:
            return True
        return self.state is CircuitState.HALF_OPEN and not self._is_tried

    @property
    def wait_seconds(self) -> float:
        """Time until it lets a request through again; 0 if it does now or a trial is under way."""
        return max(self._closes_at - self._clock(), 0.0) if self.state is CircuitState.OPEN else 0.0

    def begin(self) -> bool:
        """A request goes through; whether it is the trial of a half-open circuit."""
        if self.state is CircuitState.HALF_OPEN and not self._is_tried:
            self._is_tried = True
            return True
        return False

    def abandon(self) -> None:
        """The trial ended without telling anything: the next request is one."""
        self._is_tried = False

    def began_to_answer(self) -> None:
        """The engine answers a request; closes a half-open circuit, on probation.

        One more failure opens it again until an answer has been whole.
        """
        if self._state is CircuitState.HALF_OPEN:
            self._num_failures = self._most_failures - 1
            self._become(CircuitState.CLOSED)

    def succeeded(self) -> None:
        """An answer was whole. O(1)."""
        if self._state is CircuitState.CLOSED:
            self._num_failures = 0
            self._num_openings = 0

    def failed(self) -> None:
        """A request failed by the engine's fault. O(1)."""
        self._num_failures += 1
        if self._state is CircuitState.HALF_OPEN or self._num_failures >= self._most_failures:
            self.open()

    def open(self) -> None:
        """Open it at once, whatever has failed so far. One that is open stays so, no longer."""
        if self.state is CircuitState.OPEN:
            return
        doubled = self._backoff_seconds * 2 ** min(self._num_openings, MAX_DOUBLINGS)
        longest = min(doubled, self._max_backoff_seconds)
        self._num_openings += 1
        self._closes_at = self._clock() + longest * self._rng.uniform(0.5, 1.0)
        self._become(CircuitState.OPEN)

    def try_now(self) -> None:
        """Something speaks for it: half open without waiting for the backoff's end."""
        if self._state is CircuitState.OPEN:
            self._closes_at = self._clock()

    def _become(self, state: CircuitState) -> None:
        self._state = state
        self._on_change(state)
