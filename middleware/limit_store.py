"""Where limits are counted: what is asked and answered, and the counting within this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from paceline.policies.limits import WINDOW_MS, LimitsPolicy, SlidingWindow, WindowState

NO_PLACE: Final = -1


@dataclass(frozen=True, slots=True)
class Bound:
    """Limits that bind a request.

    Attributes:
        workload: whose they are: one of the tenant's workloads, "" for all of the tenant.
        limits: the limits.
    """

    workload: str
    limits: LimitsPolicy


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that wants in.

    Attributes:
        request_id: unique among all proxies.
        tenant: name of its tenant.
        bounds: all that bind it, at least one.
        num_tokens: what it is expected to read and say, at least 1.
    """

    request_id: str
    tenant: str
    bounds: tuple[Bound, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True)
class BoundState:
    """What one bound says.

    Attributes:
        requests: window of requests, None if they are not limited.
        tokens: window of tokens, likewise.
        place: where the request's expected tokens were counted, `NO_PLACE` if they were not.
        num_active: requests under way, this one included if admitted; -1 if not limited.
    """

    requests: WindowState | None
    tokens: WindowState | None
    place: int
    num_active: int


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a request may go on: if every bound lets it; else it was counted by none.

    Attributes:
        admitted: whether it may.
        states: one for each bound.
    """

    admitted: bool
    states: tuple[BoundState, ...]

    @property
    def places(self) -> tuple[int, ...]:
        """Where its tokens were counted, by bound."""
        return tuple(state.place for state in self.states)


@dataclass(frozen=True, slots=True)
class Booking:
    """What is known of an admitted request now.

    Attributes:
        ask: the request.
        places: of the decision that let it in.
        num_tokens: tokens to count more, or less if negative, than were so far.
        ended: whether its place is free; else the lease of it begins anew.
    """

    ask: Ask
    places: tuple[int, ...]
    num_tokens: int
    ended: bool


class LimitStore(Protocol):
    """Where limits are counted."""

    async def admit(self, ask: Ask) -> Decision:
        """Decide, and count the request if it is admitted.

        Raises:
            RedisError, RedisClusterException, OSError: what is shared cannot be reached.
        """

    async def book(self, booking: Booking) -> None:
        """Count what is known now; raises as `admit`."""


class LocalLimits:
    """Counts within this process.

    Args:
        window_ms: length of a minute.
        clock_ms: monotonic milliseconds.
    """

    def __init__(self, clock_ms: Callable[[], int], *, window_ms: int = WINDOW_MS) -> None:
        self._clock_ms = clock_ms
        self._window_ms = window_ms
        self._windows: dict[tuple[str, str, str], SlidingWindow] = {}
        self._active: dict[tuple[str, str], set[str]] = {}

    async def admit(self, ask: Ask) -> Decision:
        """Decide, and count the request if it is admitted. O(bounds)."""
        now = self._clock_ms()
        admitted = all(self._has_room(ask.tenant, bound, now) for bound in ask.bounds)
        places = self.count(ask) if admitted else self._turn_away(ask, now)
        now = self._clock_ms()  # not before what was counted: windows do not go back in time
        states = [
            BoundState(
                None if requests is None else requests.state(now),
                None if tokens is None else tokens.state(now),
                place,
                -1 if bound.limits.concurrency is None else len(self._places(ask.tenant, bound)),
            )
            for bound, place in zip(ask.bounds, places, strict=True)
            for requests, tokens in [self._windows_of(ask.tenant, bound)]
        ]
        return Decision(admitted, tuple(states))

    async def book(self, booking: Booking) -> None:
        """Count what is known now. O(bounds)."""
        self.book_now(booking)

    def count(self, ask: Ask) -> tuple[int, ...]:
        """Count a request, whether or not there is room; returns the places of its tokens."""
        now = self._clock_ms()
        places = []
        for bound in ask.bounds:
            requests, tokens = self._windows_of(ask.tenant, bound)
            if requests is not None:
                requests.take(now, 1)
            places.append(NO_PLACE if tokens is None else tokens.take(now, ask.num_tokens))
            if bound.limits.concurrency is not None:
                self._places(ask.tenant, bound).add(ask.request_id)
        return tuple(places)

    def book_now(self, booking: Booking) -> None:
        """`book` without awaiting."""
        now = self._clock_ms()
        for bound, place in zip(booking.ask.bounds, booking.places, strict=True):
            _, tokens = self._windows_of(booking.ask.tenant, bound)
            if tokens is not None and booking.num_tokens > 0:
                tokens.take(now, booking.num_tokens)
            elif tokens is not None and booking.num_tokens < 0:
                tokens.give_back(now, place, -booking.num_tokens)
            if booking.ended and bound.limits.concurrency is not None:
                self._places(booking.ask.tenant, bound).discard(booking.ask.request_id)

    def _turn_away(self, ask: Ask, now: int) -> tuple[int, ...]:
        for bound in ask.bounds:
            for window in self._windows_of(ask.tenant, bound):
                if window is not None:
                    window.turned_away(now)
        return (NO_PLACE,) * len(ask.bounds)

    def _has_room(self, tenant: str, bound: Bound, now: int) -> bool:
        windows = self._windows_of(tenant, bound)
        if any(w is not None and not w.state(now).remaining for w in windows):
            return False
        most = bound.limits.concurrency
        return most is None or len(self._places(tenant, bound)) < most

    def _windows_of(
        self, tenant: str, bound: Bound
    ) -> tuple[SlidingWindow | None, SlidingWindow | None]:
        limits = bound.limits
        return (
            self._window((tenant, bound.workload, "requests"), limits.requests_per_minute),
            self._window((tenant, bound.workload, "tokens"), limits.tokens_per_minute),
        )

    def _window(self, key: tuple[str, str, str], limit: int | None) -> SlidingWindow | None:
        if limit is None:
            return None
        window = self._windows.get(key)
        if window is None:
            window = self._windows[key] = SlidingWindow(
                limit, window_ms=self._window_ms, paced=True
            )
        elif window.limit != limit:
            window.change_limit(limit)
        return window

    def _places(self, tenant: str, bound: Bound) -> set[str]:
        return self._active.setdefault((tenant, bound.workload), set())
