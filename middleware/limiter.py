"""Keeping tenants to their limits: who is let in, what each request is charged with.

A request is charged with what it is expected to read and say when it is let in, and with what it
was wrong by when that is known: more while it speaks, each second; less when it ends, or shortly
before its first minute is over. So many requests at once do not find the same room, and what a
long reply says after its first minute counts when it is said.

Counted is in Redis, if one is named, and in this process besides: when Redis is away, each proxy
goes on from what it has let in itself, and keeps the whole limit alone. What it has let in within
the last minute is counted in Redis when that is back.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from paceline.caches.journal_client import UNREACHABLE, Backoff, RedisAddress
from paceline.middleware.endpoints import Charge
from paceline.middleware.limit_answers import Headers, limit_headers, refusal_of
from paceline.middleware.limit_redis import LEASE_MS, LOST_SECONDS, RedisLimits
from paceline.middleware.limit_store import Ask, Booking, Bound, Decision, LocalLimits
from paceline.middleware.usage_editing import UsageMeter
from paceline.policies.limits import WINDOW_MS, TokenEstimate

logger = logging.getLogger("paceline.limits")

TICK_SECONDS: Final = 1.0
WAIT_SECONDS: Final = 0.25
STABLE_SECONDS: Final = 60.0
"""A Redis that was lost less long ago than this is tried again more and more seldom, unsaid."""
CORRECTED_AT: Final = 0.75
"""Part of a window after which a running request gives back what it was charged too much."""
LEASE_PARTS: Final = 3
"""A place is kept by a sign of life in each third of its lease."""
MAX_PENDING: Final = 4096
"""Bookings, and requests let in, that are kept while Redis is away; the oldest are dropped."""
FAILURES: Final = (*UNREACHABLE, TimeoutError)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitTiming:
    """Times of the limiter.

    Attributes:
        window_ms: length of a minute.
        lease_ms: how long a place stays taken when its proxy is gone.
        tick_seconds: time between two bookings of what running requests have said.
        wait_seconds: longest that a request waits for Redis.
        lost_seconds: a call that takes longer has failed; until then its answer is heard.
    """

    window_ms: int = WINDOW_MS
    lease_ms: int = LEASE_MS
    tick_seconds: float = TICK_SECONDS
    wait_seconds: float = WAIT_SECONDS
    lost_seconds: float = LOST_SECONDS


@dataclass(slots=True, eq=False)
class Ticket:
    """A request that was let in, until it ends.

    Attributes:
        ask: what it asked for.
        headers: what its client is told of its limits.
        num_bytes: length of its body.
        began_ms: when it was let in.
        local: its places within this process.
        shared: its places in Redis; None if it was let in without.
        late: what Redis was asked, if the request did not wait for the answer.
        charged: tokens counted for it so far.
        meter: what its answer tells.
        is_asked: whether an engine works on it, or has answered it.
        charge: what of it counts for a limit of tokens.
    """

    ask: Ask
    headers: Headers
    num_bytes: int
    began_ms: int
    local: tuple[int, ...]
    shared: tuple[int, ...] | None
    charged: int
    renewed_ms: int
    late: asyncio.Task[Decision] | None = None
    meter: UsageMeter = field(default_factory=UsageMeter)
    is_asked: bool = False
    is_corrected: bool = False
    charge: Charge = Charge.ALL

    @property
    def counts_tokens(self) -> bool:
        """Whether some bound limits tokens, and the request has any that count."""
        return self.charge is not Charge.NOTHING and any(
            bound.limits.tokens_per_minute is not None for bound in self.ask.bounds
        )

    @property
    def has_place(self) -> bool:
        """Whether some bound limits how many there are at a time."""
        return any(bound.limits.concurrency is not None for bound in self.ask.bounds)

    def asking(self) -> None:
        """An engine is asked, the first or another one after it."""
        self.meter = UsageMeter()
        self.is_asked = True

    def failed(self) -> None:
        """The engine could not be reached, refused, or gave nothing of an answer."""
        self.is_asked = False

    def num_tokens(self) -> int:
        """What it has read and said so far; while nothing is known, what it is charged with."""
        if not self.is_asked or self.charge is Charge.NOTHING:
            return 0
        if self.meter.is_known:
            return self.meter.num_tokens
        return max(self.charged, self.meter.num_said)


class Limiter:
    """Lets requests in, or not.

    Args:
        registry: of the proxy's metrics.
        redis_url: Redis that the limits are shared through; None counts in this process alone.
        timing: its times.
        clock: monotonic seconds.

    Raises:
        JournalError: the URL cannot be understood.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        redis_url: str | None = None,
        *,
        timing: LimitTiming | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timing = timing or LimitTiming()
        self._clock = clock
        self._local = LocalLimits(self._now_ms, window_ms=self._timing.window_ms)
        self._redis: RedisLimits | None = None
        if redis_url is not None:
            address = RedisAddress(redis_url)
            self._shown = address.shown
            self._redis = RedisLimits(
                address,
                window_ms=self._timing.window_ms,
                lease_ms=self._timing.lease_ms,
                lost_seconds=self._timing.lost_seconds,
            )
        self._is_shared = False
        self._lost = asyncio.Event()
        self._lost_at = -math.inf
        self._running: set[Ticket] = set()
        self._pending: deque[Booking] = deque(maxlen=MAX_PENDING)
        self._alone: deque[Ticket] = deque(maxlen=MAX_PENDING)
        self._estimates: dict[str, TokenEstimate] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._metrics = LimitMetrics(registry)

    @property
    def is_shared(self) -> bool:
        """Whether Redis decides at the moment."""
        return self._is_shared

    async def open(self) -> None:
        """Connect to Redis, if one is named, and begin to keep accounts."""
        if self._redis is not None:
            try:
                await self._connect()
            except FAILURES as error:
                self._degrade(error)
            self._start(self._reconnect_forever())
        self._start(self._tick_forever())

    async def close(self) -> None:
        """Book what has ended, then stop."""
        for task in self._keepers:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await asyncio.gather(*self._tasks)
        if self._redis is not None:
            await self._redis.close()

    async def admit(
        self,
        request_id: str,
        tenant: str,
        bounds: tuple[Bound, ...],
        *,
        num_bytes: int,
        most_said: int | None,
        charge: Charge = Charge.ALL,
    ) -> Ticket:
        """Let a request in.

        Args:
            request_id: unique among all proxies.
            tenant: name of its tenant.
            bounds: all that bind it, at least one.
            num_bytes: length of its body.
            most_said: most tokens that it may be answered with; None if it does not tell.
            charge: what of it counts for a limit of tokens.

        Raises:
            ApiError: 429, it has to wait; with the headers that say how long.
        """
        expected = 0
        if charge is not Charge.NOTHING:
            says = charge is Charge.ALL
            expected = self._estimate(tenant).expect(num_bytes, most_said if says else 0)
        ask = Ask(request_id, tenant, bounds, expected)
        decision, is_shared, late = await self._decide(ask)
        headers = limit_headers(decision)
        if not decision.admitted:
            if late is not None:
                self._spawn(self._undo(ask, late))
            refusal = refusal_of(ask, decision)
            self._metrics.refused.labels(tenant, refusal.kind).inc()
            raise refusal.error(tenant, headers)
        local = self._local.count(ask) if is_shared else decision.places
        now = self._now_ms()
        ticket = Ticket(
            ask=ask,
            headers=headers,
            num_bytes=num_bytes,
            began_ms=now,
            local=local,
            shared=decision.places if is_shared else None,
            charged=expected,
            renewed_ms=now,
            late=late,
            charge=charge,
        )
        self._running.add(ticket)
        if self._redis is not None and not is_shared:
            self._alone.append(ticket)
        self._metrics.admitted.labels(tenant).inc()
        return ticket

    def finish(self, ticket: Ticket) -> None:
        """The request has ended, however it did; what it has come to is booked in the background.

        Harmless when repeated. O(bounds).
        """
        if ticket not in self._running:
            return
        self._running.discard(ticket)
        num_tokens = ticket.num_tokens()
        if not ticket.is_corrected:
            self._learn(ticket)
        if ticket.counts_tokens:
            self._metrics.tokens.labels(ticket.ask.tenant).inc(num_tokens)
        self._book(ticket, num_tokens - ticket.charged, ended=True)

    async def tick(self) -> None:
        """Book what running requests have said, and keep their places. O(running requests)."""
        now = self._now_ms()
        for ticket in list(self._running):
            more = ticket.num_tokens() - ticket.charged if ticket.counts_tokens else 0
            if more < 0 and not self._is_time_to_correct(ticket, now):
                more = 0
            stale = now - ticket.renewed_ms >= self._timing.lease_ms / LEASE_PARTS
            if more or (ticket.has_place and stale):
                self._book(ticket, more, ended=False)

    def _is_time_to_correct(self, ticket: Ticket, now_ms: int) -> bool:
        """Whether a request gives back now, once, what it was charged too much."""
        due = now_ms - ticket.began_ms >= self._timing.window_ms * CORRECTED_AT
        if ticket.is_corrected or not due or not ticket.meter.is_known:
            return False
        self._learn(ticket)
        ticket.is_corrected = True
        return True

    def _learn(self, ticket: Ticket) -> None:
        meter = ticket.meter
        # of a request that is not answered with tokens nothing is learned for those that are
        if ticket.is_asked and meter.is_known and ticket.charge is Charge.ALL:
            self._estimate(ticket.ask.tenant).learn(
                ticket.num_bytes, meter.num_read, meter.num_said
            )

    def _estimate(self, tenant: str) -> TokenEstimate:
        found = self._estimates.get(tenant)
        if found is None:
            found = self._estimates[tenant] = TokenEstimate()
        return found

    async def _decide(self, ask: Ask) -> tuple[Decision, bool, asyncio.Task[Decision] | None]:
        """The decision, whether it is Redis', and Redis' own where that is too late."""
        late = None
        if self._redis is not None and self._is_shared:
            asked = asyncio.create_task(self._redis.admit(ask))
            await asyncio.wait({asked}, timeout=self._timing.wait_seconds)
            if not asked.done():  # perhaps it was we who were held up: what has come is heard first
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            if asked.done():
                try:
                    return asked.result(), True, None
                except FAILURES as error:
                    self._degrade(error)
            else:
                late = asked
                self._degrade(TimeoutError(f"no answer for {self._timing.wait_seconds:g} s"))
        return await self._local.admit(ask), False, late

    async def _undo(self, ask: Ask, late: asyncio.Task[Decision]) -> None:
        """Give back what Redis counted for a request that was refused meanwhile."""
        decision = await _heard(late)
        if decision is not None and decision.admitted:
            await self._book_shared(Booking(ask, decision.places, -ask.num_tokens, ended=True))

    def _book(self, ticket: Ticket, num_tokens: int, *, ended: bool) -> None:
        ticket.charged += num_tokens
        ticket.renewed_ms = self._now_ms()
        booking = Booking(ticket.ask, ticket.local, num_tokens, ended)
        self._local.book_now(booking)
        if ticket.shared is not None:
            self._spawn(self._book_shared(replace(booking, places=ticket.shared)))

    async def _book_shared(self, booking: Booking) -> None:
        assert self._redis is not None
        if self._is_shared:
            try:
                await self._redis.book(booking)
                return
            except FAILURES as error:
                self._degrade(error)
        if booking.num_tokens or booking.ended:
            self._pending.append(booking)

    def _degrade(self, error: BaseException) -> None:
        if self._is_shared or not self._metrics.is_degraded:
            self._metrics.lost.inc()
            if self._clock() - self._lost_at > STABLE_SECONDS:
                logger.warning(
                    "%s is away (%s: %s); this proxy keeps the limits alone until it is back",
                    self._shown,
                    type(error).__name__,
                    error,
                )
            self._lost_at = self._clock()
        self._is_shared = False
        self._metrics.is_degraded = True
        self._lost.set()

    async def _connect(self) -> None:
        """Connect, and book what was kept meanwhile."""
        assert self._redis is not None
        await self._redis.connect()
        while self._pending:
            await self._redis.book(self._pending[0])
            self._pending.popleft()
        while self._alone:
            await self._adopt(self._alone[0])
            self._alone.popleft()
        if self._metrics.is_degraded:
            logger.info("%s is back; the limits are shared again", self._shown)
        self._is_shared = True
        self._metrics.is_degraded = False
        self._lost.clear()

    async def _adopt(self, ticket: Ticket) -> None:
        """Count in Redis what was let in without it, unless that is more than a minute ago."""
        assert self._redis is not None
        decision = None if ticket.late is None else await _heard(ticket.late)
        charged = ticket.ask.num_tokens
        if decision is not None and decision.admitted:
            ticket.shared = decision.places
        elif self._now_ms() - ticket.began_ms > self._timing.window_ms:
            return
        else:
            charged = ticket.charged
            ticket.shared = await self._redis.adopt(replace(ticket.ask, num_tokens=charged))
        ended = ticket not in self._running
        if ended or ticket.charged != charged:
            more = ticket.charged - charged
            await self._redis.book(Booking(ticket.ask, ticket.shared, more, ended))

    async def _reconnect_forever(self) -> None:
        backoff = Backoff()
        while True:
            stable_since = self._clock()
            await self._lost.wait()
            if self._clock() - stable_since > STABLE_SECONDS:
                backoff.reset()
            await asyncio.sleep(backoff.next_seconds())
            with suppress(*FAILURES):
                await self._connect()

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(self._timing.tick_seconds)
            await self.tick()

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._keepers.append(asyncio.create_task(work))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _heard(late: asyncio.Task[Decision]) -> Decision | None:
    """An answer that was not waited for; None if it never came."""
    try:
        return await late
    except FAILURES:
        return None


class LimitMetrics:
    """What the limiter counts.

    Labels are tenants of the policy file and kinds of our own.

    Args:
        registry: of the proxy's metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.admitted = Counter(
            "paceline_proxy_limit_admitted",
            "Requests of tenants with limits that were let in.",
            ["tenant"],
            registry=registry,
        )
        self.refused = Counter(
            "paceline_proxy_limit_refused",
            "Requests that had to wait, by the limit that lasted longest.",
            ["tenant", "limit"],
            registry=registry,
        )
        self.tokens = Counter(
            "paceline_proxy_limit_tokens",
            "Tokens that finished requests of tenants with a limit of them have read and said.",
            ["tenant"],
            registry=registry,
        )
        self.lost = Counter(
            "paceline_proxy_limit_redis_lost",
            "Times that the limits' Redis did not answer, or not in time, after it had before.",
            registry=registry,
        )
        self._degraded = Gauge(
            "paceline_proxy_limit_degraded",
            "Whether this proxy keeps the limits alone because their Redis is away.",
            registry=registry,
        )
        self._is_degraded = False

    @property
    def is_degraded(self) -> bool:
        """Whether Redis is named and away."""
        return self._is_degraded

    @is_degraded.setter
    def is_degraded(self, is_degraded: bool) -> None:
        self._is_degraded = is_degraded
        self._degraded.set(is_degraded)
