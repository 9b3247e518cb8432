"""When tokens are charged: five rules at a clock of their own, against what is really said.

A tenant has more work than its limit lets in. Prompts, replies and speeds are drawn at random; the
clock goes in steps, so that hours take seconds. Compared are, over all windows of 60 s after the
first three minutes, the tokens that were read and said in them.

- ``end``: nothing is charged before the end.
- ``reserve``: the expected tokens are set aside until they have been said.
- ``most``: ``max_tokens`` is charged at the beginning, and corrected at the end.
- ``mean``: what requests used on the average is charged at the beginning, corrected while they
  run.
- ``paced``: the same, let in at an even pace after the first rush: what
  `paceline.middleware.limiter` does.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal

from paceline.policies.limits import WINDOW_MS, SlidingWindow, TokenEstimate

Rule = Literal["end", "reserve", "most", "mean", "paced"]
RULES: Final[tuple[Rule, ...]] = ("end", "reserve", "most", "mean", "paced")

STEP_MS: Final = 100
BOOK_MS: Final = 1_000
BYTES_PER_TOKEN: Final = 4
MAX_TOKENS: Final = 4_096
SKIPPED_MINUTES: Final = 3
CORRECTED_MS: Final = WINDOW_MS * 3 // 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a tenant wants.

    Attributes:
        limit: tokens a minute.
        mean_read: tokens of a prompt on the average, uniform from nothing to twice that.
        mean_said: tokens of a reply on the average, exponential, at most `MAX_TOKENS`.
        speed: tokens a second.
        most_running: requests that the tenant would have under way.
    """

    limit: int = 1_000_000
    mean_read: int = 1_500
    mean_said: int = 500
    speed: float = 50.0
    most_running: int = 400


@dataclass(slots=True)
class _Request:
    began_ms: int
    num_read: int
    num_say: int
    charged: int
    place: int
    said: float = 0.0
    booked: int = 0
    is_corrected: bool = False


def simulate(rule: Rule, work: Work, *, minutes: int, seed: int = 1) -> tuple[float, float, float]:
    """Least, mean and most of what windows of 60 s held, as a part of the limit."""
    used = _Simulation(rule, work, random.Random(seed)).run(minutes)  # noqa: S311  load, no secret
    per_window = WINDOW_MS // STEP_MS
    sums = [0, *accumulate(used)]
    windows = [
        sums[i] - sums[i - per_window]
        for i in range(SKIPPED_MINUTES * per_window + per_window, len(sums))
    ]
    mean = (sums[-1] - sums[SKIPPED_MINUTES * per_window]) / (minutes - SKIPPED_MINUTES)
    return min(windows) / work.limit, mean / work.limit, max(windows) / work.limit


class _Simulation:
    def __init__(self, rule: Rule, work: Work, rng: random.Random) -> None:
        self._rule = rule
        self._work = work
        self._rng = rng
        self._window = SlidingWindow(work.limit, paced=rule == "paced")
        self._estimate = TokenEstimate()
        self._running: list[_Request] = []

    def run(self, minutes: int) -> Sequence[int]:
        """Tokens read and said in each step."""
        return [self._step(now) for now in range(0, minutes * WINDOW_MS, STEP_MS)]

    def _step(self, now: int) -> int:
        used = 0
        for request in self._running:
            before = int(request.said)
            step = self._work.speed * STEP_MS / 1000
            request.said = min(request.said + step, float(request.num_say))
            used += int(request.said) - before
            ended = request.said >= request.num_say
            if ended or (now - request.began_ms) % BOOK_MS == 0:
                self._book(request, now, ended=ended)
        self._running = [r for r in self._running if r.said < r.num_say]
        while len(self._running) < self._work.most_running and self._has_room(now):
            used += self._begin(now)
        return used

    def _has_room(self, now: int) -> bool:
        remaining = self._window.state(now).remaining
        if self._rule == "reserve":
            remaining -= sum(max(r.charged - r.num_read - int(r.said), 0) for r in self._running)
        if remaining <= 0:
            self._window.turned_away(now)
        return remaining > 0

    def _begin(self, now: int) -> int:
        num_read = self._rng.randint(1, 2 * self._work.mean_read)
        num_say = min(int(self._rng.expovariate(1 / self._work.mean_said)) + 1, MAX_TOKENS)
        num_bytes = num_read * BYTES_PER_TOKEN
        expected = self._estimate.expect(num_bytes, MAX_TOKENS)
        taken = {
            "end": 0,
            "reserve": num_read,
            "most": num_read + MAX_TOKENS,
            "mean": expected,
            "paced": expected,
        }[self._rule]
        charged = expected if self._rule == "reserve" else taken
        place = self._window.take(now, taken)
        self._running.append(_Request(now, num_read, num_say, charged, place))
        return num_read

    def _book(self, request: _Request, now: int, *, ended: bool) -> None:
        so_far = request.num_read + int(request.said)
        if self._rule == "reserve":
            # what it has said since the last booking moves from what is set aside to the window
            self._window.take(now, int(request.said) - request.booked)
            request.booked = int(request.said)
        elif self._rule in ("mean", "paced") or ended:
            self._correct(request, now, so_far - request.charged, ended=ended)
        if ended:
            self._estimate.learn(
                request.num_read * BYTES_PER_TOKEN, request.num_read, request.num_say
            )

    def _correct(self, request: _Request, now: int, more: int, *, ended: bool) -> None:
        due = now - request.began_ms >= CORRECTED_MS and not request.is_corrected
        if more < 0 and not ended and not due:
            return
        if more < 0:
            self._window.give_back(now, request.place, -more)
            request.is_corrected = True
        else:
            self._window.take(now, more)
        request.charged += more
