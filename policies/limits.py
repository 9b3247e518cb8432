"""How much a tenant may ask for: the rule, and the sliding window that keeps it exactly.

The same window is kept in Redis by a script (`paceline.middleware.limit_scripts`); a test drives
both with the same calls.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

WINDOW_MS: Final = 60_000
PARTS: Final = 240
"""Entries that a full window is kept in, at least: an entry holds this part of the limit."""
FORGIVEN_WINDOWS: Final = 60
"""A debt above so many times the limit is not paid back."""
PACE_SLACK: Final = 20
"""Who is turned away from a full window keeps this part of the limit as credit, or 1, at most."""
PRIOR_TOKENS_PER_BYTE: Final = 0.25
PRIOR_SAID: Final = 256.0
LEARNING: Final = 1 / 32

Positive = Annotated[int, Field(ge=1, le=10**10)]


class LimitsPolicy(BaseModel):
    """What a tenant, or one kind of its work, may ask for; None is no limit.

    Attributes:
        requests_per_minute: most requests in any 60 seconds.
        tokens_per_minute: most tokens in any 60 seconds, read and said together.
        concurrency: most requests at a time.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    concurrency: Positive | None = None

    @property
    def is_none(self) -> bool:
        """Whether nothing is limited."""
        limits = (self.requests_per_minute, self.tokens_per_minute, self.concurrency)
        return limits == (None, None, None)


@dataclass(frozen=True, slots=True)
class WindowState:
    """What a window says of itself.

    Attributes:
        limit: most in the window.
        remaining: what may be taken now, 0 if nothing.
        reset_ms: time until the window is empty if nothing more is taken.
        wait_ms: time until something may be taken, 0 for now.
    """

    limit: int
    remaining: int
    reset_ms: int
    wait_ms: int


class SlidingWindow:
    """Counts what was taken in the last 60 seconds, and what is owed beyond the limit.

    What was taken is kept in entries of at most a 240th of the limit (or of one larger amount), in
    the order of time; an entry leaves when the last of what is in it is a window old. So:

    - Of what `take` was told, never more than the limit counts in a half-open window of 60 s.
    - While there is always somebody who takes, at least 239/240 of the limit count in every window
      of 60 s; with a limit of at most 240, all of it.
    - What is taken beyond the limit is owed. It counts as soon as there is room, before anything
      new is let in: `remaining` is 0 while something is owed. Over any time it counts exactly
      once, so that the mean stays the limit however far a window was overdrawn; a debt above 60
      times the limit is cut to that.

    A paced window lets in no more than its credit besides: the limit at the beginning, refilled
    evenly with a limit a minute, at most to the limit. Whoever is turned away from a full window
    loses the credit but for a twentieth of the limit. So a tenant that waits a minute may ask for
    all of it at once, as in any window; one that always asks for more gets it at an even pace after
    the first rush, instead of the same rush each minute: from the third minute on, what comes at
    random finds the limit in every window, and tokens, which are said long after they were let in,
    are said evenly (`paceline bench limits --simulate`). In the second minute windows that begin
    within the rush's minute have less.

    O(1) amortised; at most about 480 entries while nothing is larger than a 240th of the limit,
    and never more than two for each taken amount.

    Args:
        limit: most in a window, at least 1.
        window_ms: its length.
        paced: whether it has a credit.
    """

    def __init__(self, limit: int, *, window_ms: int = WINDOW_MS, paced: bool = False) -> None:
        self.limit = limit
        self.window_ms = window_ms
        self.total = 0
        self.debt = 0
        self._part = -(-limit // PARTS)
        self._first = 1  # number of the oldest entry
        self._entries: deque[list[int]] = deque()  # [time of the last taken in ms, amount]
        self._paced = paced
        self._credit = limit * window_ms  # in parts of a token, so that all numbers are whole
        self._credited_ms = 0

    @property
    def num_entries(self) -> int:
        """Entries at the moment."""
        return len(self._entries)

    def change_limit(self, limit: int) -> None:
        """Keep to another limit from now on; what was taken still counts."""
        self.limit = limit
        self._part = -(-limit // PARTS)
        self._credit = min(self._credit, limit * self.window_ms)

    def state(self, now_ms: int) -> WindowState:
        """What may be taken, and when more; O(entries) if nothing may."""
        self._advance(now_ms)
        remaining = self._space()
        if self._paced:
            remaining = max(min(remaining, self._credit // self.window_ms), 0)
        wait = 0 if remaining else max(self._wait_ms(now_ms), 1)
        return WindowState(self.limit, remaining, self._reset_ms(now_ms), wait)

    def turned_away(self, now_ms: int) -> None:
        """Somebody came while there was nothing left."""
        self._advance(now_ms)
        if self._space() == 0:
            kept = max(self.limit // PACE_SLACK, 1)
            self._credit = min(self._credit, kept * self.window_ms)

    def take(self, now_ms: int, amount: int) -> int:
        """Count `amount`, whether or not it fits; returns its place, for `give_back`.

        Args:
            now_ms: at least that of the call before.
            amount: 0 or more.
        """
        self._advance(now_ms)
        fits = min(amount, self._space())
        if fits or not self._entries:
            self._add(now_ms, fits)
        most = self.limit * FORGIVEN_WINDOWS
        self.debt = min(self.debt + amount - fits, most)
        full = self.limit * self.window_ms
        self._credit = max(self._credit - amount * self.window_ms, -full)
        return self._first + len(self._entries) - 1

    def give_back(self, now_ms: int, place: int, amount: int) -> None:
        """Count `amount` less of what was taken at `place` and since.

        What is owed is cancelled first. Nothing happens if the place has left the window: then its
        room was used by nobody, or has been given to others.
        """
        self._advance(now_ms)
        cancelled = min(self.debt, amount)
        self.debt -= cancelled
        if place < self._first:
            return
        full = self.limit * self.window_ms
        self._credit = min(self._credit + amount * self.window_ms, full)
        amount -= cancelled
        for number in range(place - self._first, len(self._entries)):
            if amount == 0:
                return
            entry = self._entries[number]
            less = min(entry[1], amount)
            entry[1] -= less
            self.total -= less
            amount -= less

    def _space(self) -> int:
        return 0 if self.debt else max(self.limit - self.total, 0)

    def _advance(self, now_ms: int) -> None:
        full = self.limit * self.window_ms
        passed = min(now_ms - self._credited_ms, 2 * self.window_ms)
        self._credit = min(self._credit + passed * self.limit, full)
        self._credited_ms = now_ms
        while self._entries and now_ms - self._entries[0][0] >= self.window_ms:
            time_ms, amount = self._entries.popleft()
            self._first += 1
            self.total -= amount
            # what is owed counts from the moment that there was room
            paid = min(self.debt, amount)
            if paid:
                self.debt -= paid
                self._add(time_ms + self.window_ms, paid)

    def _add(self, time_ms: int, amount: int) -> None:
        self.total += amount
        if self._entries and self._entries[-1][1] + amount <= self._part:
            self._entries[-1][0] = time_ms
            self._entries[-1][1] += amount
        else:
            self._entries.append([time_ms, amount])

    def _wait_ms(self, now_ms: int) -> int:
        wait = 0
        if self.total and not self._space():
            wait = self._left_at(self.debt + self.total - self.limit + 1) - now_ms
        return max(wait, self._credit_ms(self.window_ms))

    def _reset_ms(self, now_ms: int) -> int:
        reset = 0
        if self.total:
            last = self._left_at(self.debt) if self.debt else self._entries[-1][0]
            reset = last + self.window_ms - now_ms
        return max(reset, self._credit_ms(self.limit * self.window_ms))

    def _credit_ms(self, credit: int) -> int:
        """Time until there is so much credit."""
        return -((self._credit - credit) // self.limit) if self._paced else 0

    def _left_at(self, amount: int) -> int:
        """When so much will have left the window, what is owed included."""
        cycles = (amount - 1) // self.total
        rest = amount - cycles * self.total
        held_until = accumulate(amount for _, amount in self._entries)
        number = next(i for i, held in enumerate(held_until) if held >= rest)
        return self._entries[number][0] + (cycles + 1) * self.window_ms

    def check_integrity(self) -> None:
        """Raise AssertionError unless the counts are what the entries say; for tests."""
        times = [time_ms for time_ms, _ in self._entries]
        assert times == sorted(times)
        assert all(amount >= 0 for _, amount in self._entries)
        assert self.total == sum(amount for _, amount in self._entries) <= self.limit
        assert 0 <= self.debt <= self.limit * FORGIVEN_WINDOWS
        assert len(self._entries) <= 2 * PARTS + 2 or self.limit < PARTS


class TokenEstimate:
    """What a tenant's next request will read and say, learned from those before it.

    A request is charged with this when it is admitted, and what it was wrong by when that is
    known: requests that come at once don't all find the same room. The expectation of a mean is
    right on the average, so that room is neither wasted nor promised twice, as it is with
    ``max_tokens``; `paceline bench limits --simulate` compares them.
    """

    def __init__(self) -> None:
        self._tokens_per_byte = PRIOR_TOKENS_PER_BYTE
        self._said = PRIOR_SAID
        self._num_learned = 0

    def expect(self, num_bytes: int, most_said: int | None) -> int:
        """Tokens, at least 1.

        Args:
            num_bytes: length of the request's body.
            most_said: most tokens it may say; None if it does not tell.
        """
        said = self._said if most_said is None else min(self._said, most_said)
        return max(round(num_bytes * self._tokens_per_byte + said), 1)

    def learn(self, num_bytes: int, num_read: int, num_said: int) -> None:
        """What a request read, and said within its first minute."""
        self._num_learned += 1
        weight = max(LEARNING, 1 / self._num_learned)
        self._said += weight * (num_said - self._said)
        self._tokens_per_byte += weight * (num_read / max(num_bytes, 1) - self._tokens_per_byte)
