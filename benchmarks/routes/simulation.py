"""Placing requests on modelled engines, by the policies that the proxy has; a clock of its own.

An engine reads prompts one after the other at a fixed speed, less what its cache holds (blocks of
64 tokens, the least recently used evicted first), and says tokens at a speed that falls when many
are answered at a time. That is a model: it tells hits and imbalance exactly, times only roughly.
What a proxy believes is kept apart from what engines hold, and each proxy knows its own requests
alone.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from statistics import fmean, quantiles
from typing import Final

from paceline.benchmarks.routes.work import BYTES_PER_TOKEN, CACHE_BLOCK_BYTES, Session, Turn
from paceline.middleware.placement import PlacedRequest, Placer, RoutePolicy
from paceline.middleware.served_prefixes import ServedPrefixes

BLOCK_TOKENS: Final = CACHE_BLOCK_BYTES // BYTES_PER_TOKEN
MAX_AGE_SECONDS: Final = 1800.0
GUESS_SAID: Final = 256.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSettings:
    """Engines and proxies.

    Attributes:
        replicas: engines.
        proxies: proxies that requests reach in turns.
        cache_tokens: what an engine's cache holds.
        read_per_second: prompt tokens that an engine reads.
        said_per_second: tokens that one request is answered with at most.
        all_said_per_second: tokens that an engine says at most, over all requests.
        pause_seconds: time between an answer and the session's next request.
    """

    replicas: int = 4
    proxies: int = 1
    cache_tokens: int = 200_000
    read_per_second: float = 8_000.0
    said_per_second: float = 60.0
    all_said_per_second: float = 1_500.0
    pause_seconds: float = 2.0


@dataclass(slots=True)
class _Known:
    """An engine as one proxy knows it."""

    name: str
    prefixes: ServedPrefixes
    outstanding_tokens: float = 0.0


@dataclass(slots=True)
class _Asked:
    """One request on its way."""

    session: Session
    number: int
    came_at: float
    known: _Known
    unread: float
    guess: float

    @property
    def turn(self) -> Turn:
        return self.session.turns[self.number]


@dataclass(slots=True)
class _Engine:
    """What an engine really holds and does."""

    max_blocks: int
    cache: OrderedDict[int, None] = field(default_factory=OrderedDict)
    waiting: deque[_Asked] = field(default_factory=deque)
    is_reading: bool = False
    num_answering: int = 0
    work: float = 0.0

    def num_cached(self, blocks: Sequence[int]) -> int:
        """Leading blocks that it holds."""
        number = 0
        for block in blocks:
            if block not in self.cache:
                break
            number += 1
        return number

    def hold(self, blocks: Sequence[int]) -> None:
        """Use blocks; ends are evicted before beginnings."""
        for block in reversed(blocks):
            self.cache[block] = None
            self.cache.move_to_end(block)
        while len(self.cache) > self.max_blocks:
            self.cache.popitem(last=False)


@dataclass(slots=True)
class Outcome:
    """What came of placing all requests.

    Attributes:
        num_requests: requests.
        prompt_tokens: of all of them.
        hit_tokens: tokens of them that engines held.
        believed_tokens: tokens that proxies took them to hold.
        waits: seconds before the first token of each.
        work: tokens read and said by each engine.
    """

    num_requests: int = 0
    prompt_tokens: float = 0.0
    hit_tokens: float = 0.0
    believed_tokens: float = 0.0
    waits: list[float] = field(default_factory=list)
    work: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Flat figures: shares, seconds, and the busiest engine's work against the mean."""
        cuts = quantiles(self.waits, n=20) if len(self.waits) > 1 else [*self.waits * 19]
        return {
            "hit_rate": self.hit_tokens / self.prompt_tokens,
            "believed_hit_rate": self.believed_tokens / self.prompt_tokens,
            "hit_tokens_per_request": self.hit_tokens / self.num_requests,
            "imbalance": max(self.work) / fmean(self.work),
            "first_token_p50_s": cuts[9],
            "first_token_p95_s": cuts[18],
        }


def simulate(policy: RoutePolicy, sessions: Sequence[Session], settings: FleetSettings) -> Outcome:
    """Place all requests by one policy. Deterministic within a process."""
    return _Simulation(policy, settings).run(sessions)


class _Simulation:
    def __init__(self, policy: RoutePolicy, settings: FleetSettings) -> None:
        self._settings = settings
        self._outcome = Outcome()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._now = 0.0
        self._num_placed = 0
        self._mean_said = GUESS_SAID
        names = [f"e{number}" for number in range(settings.replicas)]
        max_blocks = settings.cache_tokens // BLOCK_TOKENS
        self._engines = {name: _Engine(max_blocks) for name in names}
        self._placers = [Placer(policy) for _ in range(settings.proxies)]
        max_bytes = settings.cache_tokens * BYTES_PER_TOKEN
        self._known = [
            [_Known(n, ServedPrefixes(max_bytes, max_age_seconds=MAX_AGE_SECONDS)) for n in names]
            for _ in range(settings.proxies)
        ]

    def run(self, sessions: Sequence[Session]) -> Outcome:
        for session in sessions:
            self._at(session.starts_at, self._asking(session, 0))
        while self._events:
            self._now, _, happen = heapq.heappop(self._events)
            happen()
        self._outcome.work = [engine.work for engine in self._engines.values()]
        return self._outcome

    def _at(self, when: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), happen))

    def _asking(self, session: Session, number: int) -> Callable[[], None]:
        return lambda: self._ask(session, number)

    def _ask(self, session: Session, number: int) -> None:
        proxy = self._num_placed % len(self._placers)
        self._num_placed += 1
        size = session.turns[number].asked
        request = PlacedRequest(
            session.name, session.scope, lambda: session.text[:size], num_bytes=size
        )
        placer = self._placers[proxy]
        found = placer.place(request, self._known[proxy], self._now)
        known = found.replica
        if placer.policy == "prefix":
            known.prefixes.add(request.digests, self._now)
        unread = request.num_prompt_tokens - found.num_hit_tokens
        known.outstanding_tokens += unread + self._mean_said
        self._outcome.believed_tokens += found.num_hit_tokens
        engine = self._engines[known.name]
        asked = _Asked(session, number, self._now, known, unread, self._mean_said)
        engine.waiting.append(asked)
        if not engine.is_reading:
            self._read(engine)

    def _read(self, engine: _Engine) -> None:
        asked = engine.waiting.popleft()
        engine.is_reading = True
        blocks = asked.session.cache_blocks[: asked.turn.asked // CACHE_BLOCK_BYTES]
        prompt = asked.turn.asked / BYTES_PER_TOKEN
        hit = engine.num_cached(blocks) * BLOCK_TOKENS
        engine.hold(blocks)
        engine.work += prompt - hit
        outcome = self._outcome
        outcome.num_requests += 1
        outcome.prompt_tokens += prompt
        outcome.hit_tokens += hit
        seconds = (prompt - hit) / self._settings.read_per_second
        self._at(self._now + seconds, lambda: self._say(engine, asked))

    def _say(self, engine: _Engine, asked: _Asked) -> None:
        settings = self._settings
        self._outcome.waits.append(self._now - asked.came_at)
        asked.known.outstanding_tokens -= asked.unread
        engine.num_answering += 1
        engine.work += asked.turn.num_said
        speed = min(settings.said_per_second, settings.all_said_per_second / engine.num_answering)
        end = self._now + asked.turn.num_said / speed
        self._at(end, lambda: self._end(engine, asked))
        engine.is_reading = False
        if engine.waiting:
            self._read(engine)

    def _end(self, engine: _Engine, asked: _Asked) -> None:
        engine.num_answering -= 1
        asked.known.outstanding_tokens -= asked.guess
        self._mean_said += 0.05 * (asked.turn.num_said - self._mean_said)
        engine.hold(asked.session.cache_blocks[: asked.turn.served // CACHE_BLOCK_BYTES])
        if asked.number + 1 < len(asked.session.turns):
            when = self._now + self._settings.pause_seconds
            self._at(when, self._asking(asked.session, asked.number + 1))
