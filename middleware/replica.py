"""One engine behind the proxy: its health, its circuit, its load, and what it has served."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Protocol

from paceline.middleware.circuit import CircuitBreaker, CircuitState
from paceline.middleware.config import UpstreamConfig
from paceline.middleware.placement import BYTES_PER_TOKEN
from paceline.middleware.route_metrics import ReplicaMetrics
from paceline.middleware.routing_config import RoutingConfig
from paceline.middleware.served_models import Entries, ask_models
from paceline.middleware.served_prefixes import ServedPrefixes
from paceline.middleware.upstream import Upstream, UpstreamError

logger = logging.getLogger("paceline.routing")

HTTP_OK: Final = 200
MODELS_SECONDS: Final = 15.0
"""Time after which an engine is asked anew what it serves: adapters come and go."""


class Running(Protocol):
    """A request that an engine works on."""

    def give_up(self, reason: str, *, silent_seconds: float) -> bool:
        """End it unless something came from the engine within that time; whether it was ended."""


class Replica:
    """One engine and what is known of it.

    Args:
        config: its entry in the configuration.
        upstream: the way to it.
        routing: when its circuit opens, how long its health may take.
        metrics: its counters.
        clock: monotonic seconds.
        rng: draws backoffs.

    Attributes:
        healthy: whether the last look at it went well, and it could be connected to since; False
            until the first look.
        last_error: why it is not.
        outstanding: requests it is working on for us.
        outstanding_tokens: what these have to be read and said, estimated.
        drained: whether an operator has it get no new requests, whatever its entry says.
        prefixes: what it has served.
        models: what it serves, as it told last; None if it has not.
        running: what it is working on for us.
    """

    def __init__(
        self,
        config: UpstreamConfig,
        upstream: Upstream,
        routing: RoutingConfig,
        metrics: ReplicaMetrics,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.config = config
        self.upstream = upstream
        self.metrics = metrics
        self.healthy = False
        self.last_error = "not looked at yet"
        self.outstanding = 0
        self.outstanding_tokens = 0.0
        self.drained = False
        self.prefixes = ServedPrefixes(
            config.cache_tokens * BYTES_PER_TOKEN, max_age_seconds=routing.prefix_seconds
        )
        self.breaker = CircuitBreaker(
            num_failures=routing.circuit_failures,
            backoff_seconds=routing.circuit_backoff_seconds,
            max_backoff_seconds=routing.circuit_max_backoff_seconds,
            on_change=self._circuit_changed,
            clock=clock,
            rng=rng,
        )
        self.running: set[Running] = set()
        self.models: Entries | None = None
        self._routing = routing
        self._clock = clock
        self._models_at = -math.inf
        self._num_hung = 0

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        return self.config.name

    @property
    def draining(self) -> bool:
        """Whether it gets no new requests and finishes those it has."""
        return self.drained or self.config.draining

    @property
    def state(self) -> str:
        """In one word: draining, unhealthy, open, half_open or up."""
        if self.draining:
            return "draining"
        if self.breaker.state is not CircuitState.CLOSED:
            return self.breaker.state.value
        return "up" if self.healthy else "unhealthy"

    def configure(self, config: UpstreamConfig) -> None:
        """Take over a changed entry with the same URL and key."""
        self.config = config
        self.prefixes.max_bytes = config.cache_tokens * BYTES_PER_TOKEN

    def unreachable(self, reason: str) -> None:
        """It could not be connected to: others are preferred until a look at it succeeds.

        What it had cached is gone with it.
        """
        if self.healthy:
            logger.warning("engine %s is unhealthy: %s", self.name, reason)
        self.healthy = False
        self.last_error = reason
        self.prefixes.clear()

    async def look(self, *, for_models: bool = False) -> None:
        """Ask for its health and remember the answer; none in time is a bad one.

        Args:
            for_models: ask too what it serves, when it has become healthy and every so often.
        """
        limit = self._routing.health_timeout_seconds
        try:
            async with asyncio.timeout(limit):
                response = await self.upstream.send("GET", self.config.health_path, {}, None)
        except TimeoutError:
            self._hung(f"its health did not answer within {limit:g} s")
            return
        except UpstreamError as error:
            self._num_hung = 0
            self.unreachable(str(error))
            return
        response.abort()
        self._num_hung = 0
        was_healthy = self.healthy
        is_healthy = response.status == HTTP_OK
        if for_models and is_healthy and not (was_healthy and self._knows_models):
            await self._look_at_models(limit)
        self.healthy = is_healthy
        self.last_error = "" if self.healthy else f"its health answers {response.status}"
        if self.healthy and not was_healthy:
            self.breaker.try_now()
        if self.healthy != was_healthy:
            logger.info("engine %s is %s", self.name, self.last_error or "healthy")

    def ask_models_again(self) -> None:
        """Have it asked with the next look at it what it serves."""
        self._models_at = -math.inf

    @property
    def _knows_models(self) -> bool:
        return self._clock() - self._models_at < MODELS_SECONDS

    async def _look_at_models(self, limit_seconds: float) -> None:
        """What it served last still counts where it does not tell in time."""
        self._models_at = self._clock()
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_seconds):
                self.models = await ask_models(self.upstream)

    async def watch(
        self,
        interval_seconds: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Look at it again and again; runs until cancelled."""
        while True:
            await self.look()
            await sleep(interval_seconds)

    def _hung(self, reason: str) -> None:
        """Its health did not answer: after some such looks, give up what waits for it."""
        if self.healthy:
            logger.warning("engine %s is unhealthy: %s", self.name, reason)
        self.healthy = False
        self.last_error = reason
        self._num_hung += 1
        if self._num_hung < self._routing.hang_looks:
            return
        self.breaker.open()
        for running in list(self.running):
            if running.give_up(reason, silent_seconds=self._routing.health_timeout_seconds):
                self.metrics.given_up.inc()

    def _circuit_changed(self, state: CircuitState) -> None:
        self.metrics.changed(state)
        logger.info("the circuit of engine %s is %s", self.name, state.value)
