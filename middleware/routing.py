"""The engines behind the proxy: who they are, whether they are well, and which one is asked."""

from __future__ import annotations

import asyncio
import math
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final

from paceline.api_errors import ApiError, upstream_failed
from paceline.middleware.attempts import Attempt
from paceline.middleware.circuit import CircuitState
from paceline.middleware.config import UpstreamConfig
from paceline.middleware.placement import PlacedRequest, Placement, Placer
from paceline.middleware.replica import Replica
from paceline.middleware.request_body import BodyView
from paceline.middleware.route_metrics import CIRCUIT_NUMBERS, RouteMetrics
from paceline.middleware.routing_config import RoutingConfig
from paceline.middleware.served_models import joined_models
from paceline.middleware.upstream import Upstream

FIRST_GUESS_SAID: Final = 256.0
LEARNING_RATE: Final = 0.05
SAID: Final = re.compile(rb'"(?:completion|output)_tokens"\s*:\s*(\d{1,9})')
SAID_NAMES: Final = (b'"completion_tokens"', b'"output_tokens"')
TAIL_BYTES: Final = 2048
PROMPT_FIELDS: Final = ("tools", "system", "instructions", "messages", "prompt", "input")
UNAVAILABLE: Final = 503
ONE_SECOND: Final = 1


class ReplicaSet:
    """The engines behind the proxy, as its configuration names them at the time.

    Args:
        routing: placement, circuits and retries.
        metrics: counts them.
        clock: monotonic seconds.
        rng: draws backoffs.

    Attributes:
        replicas: the upstreams, in the configuration's order.
        leaving: those that are no longer among them and still answer requests.
        stopping: whether the proxy ends: nothing is sent any more.
    """

    def __init__(
        self,
        routing: RoutingConfig,
        metrics: RouteMetrics,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.routing = routing
        self.replicas: list[Replica] = []
        self.leaving: list[Replica] = []
        self.stopping = False
        self._metrics = metrics
        self._clock = clock
        self._rng = rng
        self._placer = Placer(routing.policy)
        self._mean_said = FIRST_GUESS_SAID
        self._way_to: Callable[[UpstreamConfig], Upstream] | None = None
        self._health_interval_seconds = 0.0
        self._watchers: dict[Replica, asyncio.Task[None]] = {}

    @property
    def any_healthy(self) -> bool:
        """Whether some engine can be expected to answer."""
        return any(
            r.healthy and not r.draining and r.breaker.state is not CircuitState.OPEN
            for r in self.replicas
        )

    def open(
        self,
        upstreams: Sequence[UpstreamConfig],
        way_to: Callable[[UpstreamConfig], Upstream],
        *,
        health_interval_seconds: float,
    ) -> None:
        """Begin with these engines, and look at their health from now on."""
        self._way_to = way_to
        self._health_interval_seconds = health_interval_seconds
        self.update(upstreams)

    def update(self, upstreams: Sequence[UpstreamConfig]) -> None:
        """These are the engines now; at once, between two requests.

        One with the same name, URL and key stays what it is, with its health, load and what it has
        served. One that is gone gets no new requests and finishes those it has.
        """
        assert self._way_to is not None
        known = {replica.name: replica for replica in self.replicas}
        members: list[Replica] = []
        for config in upstreams:
            replica = known.get(config.name)
            if replica is not None and _is_same(replica.config, config):
                replica.configure(config)
            else:
                replica = Replica(
                    config,
                    self._way_to(config),
                    self.routing,
                    self._metrics.of(config.name),
                    clock=self._clock,
                    rng=self._rng,
                )
            members.append(replica)
        names = {config.name for config in upstreams}
        for gone in self.replicas:
            if gone not in members:
                self.leaving.append(gone)
                if gone.name not in names:
                    self._metrics.forget(gone.name)
        self.replicas = members
        self._watch()

    def request(
        self, session: str, scope: str, view: BodyView | None, num_bytes: int, *, model: str = ""
    ) -> PlacedRequest:
        """A request as placing looks at it. O(1): nothing of its prompt is read yet.

        Args:
            session: id of the conversation, "" for none.
            scope: whose prefix cache it uses.
            view: its body, None for none.
            num_bytes: of that.
            model: what it asks for where the body does not say.
        """
        if view is None:
            return PlacedRequest(session, model=model)
        most = view.most_said
        said = self._mean_said if most is None else min(most, self._mean_said)
        return PlacedRequest(
            session,
            scope,
            lambda: prompt_text(view),
            num_bytes=num_bytes,
            num_said=said,
            model=view.model_name if len(self.replicas) > 1 else "",
        )

    def attempts(self, request: PlacedRequest, *, only: Replica | None = None) -> Iterator[Attempt]:
        """The engines to try for a request, one after the other, while they fail it.

        Only those that serve its model. A lone one is tried twice: its kept-alive connection may
        have been stale.

        Args:
            request: what is placed.
            only: the one engine that can answer it, drained or not; None where any can.
        """
        members = self._serving(request.model)
        tried: list[Replica] = []
        num_sent = 0
        while not self.stopping and num_sent <= self.routing.retries:
            if only is None:
                candidates = self._candidates(members, tried)
            else:
                is_open = only.breaker.state is CircuitState.OPEN
                candidates = [] if is_open or len(tried) > 1 else [only]
            if not candidates:
                return
            placement = self._place(request, candidates)
            if tried:
                placement.replica.metrics.retries.inc()
            is_last = num_sent >= self.routing.retries or len(candidates) == 1
            attempt = Attempt(placement, request, self, is_last=is_last)
            yield attempt
            tried.append(placement.replica)
            num_sent += attempt.was_sent

    def models(self) -> bytes | None:
        """All models of the engines that are well, as a list of them; None if all serve the same.

        O(models).
        """
        return joined_models(
            r.models for r in self.replicas if r.models is not None and r.healthy and not r.draining
        )

    def learn(self, tail: bytes) -> None:
        """Learn from an answer's end how long answers are, if it says so. O(1)."""
        # finding is faster than matching, which would be tried at each of the reply's quotes
        end = tail[-TAIL_BYTES:]
        begins = [begin for name in SAID_NAMES if (begin := end.find(name)) >= 0]
        if begins and (found := SAID.findall(end, min(begins))):
            self._mean_said += LEARNING_RATE * (int(found[-1]) - self._mean_said)

    def failure(self, last: str, model: str = "") -> ApiError:
        """What a client is told when nobody has answered it.

        Args:
            model: what it asked for.
            last: how the last engine failed, "" where none was asked: then it is told after which
                time one can be, and why each cannot now.
        """
        if self.stopping:
            return _unavailable("the proxy is stopping", ONE_SECOND)
        if last:
            return upstream_failed(last)
        members = self._serving(model)
        reasons = ", ".join(_why_not(replica) for replica in members)
        waits = [r.breaker.wait_seconds for r in members if not r.draining]
        return _unavailable(f"no engine can be asked: {reasons}", math.ceil(min(waits, default=0)))

    def drain(self, name: str, *, drained: bool) -> Replica | None:
        """Have an engine get no new requests, or get them again; None if there is none such."""
        replica = self.named(name)
        if replica is not None:
            replica.drained = drained
        return replica

    def named(self, name: str) -> Replica | None:
        """The upstream of that name, None if there is none such. O(upstreams)."""
        return next((each for each in self.replicas if each.name == name), None)

    def stop(self) -> None:
        """The proxy ends: give up what still runs. Streams end with an error event."""
        self.stopping = True
        for replica in (*self.replicas, *self.leaving):
            for running in list(replica.running):
                running.give_up("the proxy is stopping", silent_seconds=0.0)

    def report(self) -> None:
        """Bring gauges up to date."""
        metrics = self._metrics
        for replica in self.replicas:
            name = replica.name
            metrics.healthy.labels(name).set(replica.healthy)
            metrics.circuit.labels(name).set(CIRCUIT_NUMBERS[replica.breaker.state])
            metrics.draining.labels(name).set(replica.draining)
            metrics.outstanding.labels(name).set(replica.outstanding)
            metrics.outstanding_tokens.labels(name).set(replica.outstanding_tokens)
            metrics.remembered.labels(name).set(replica.prefixes.num_bytes)

    async def close(self) -> None:
        """Look at nobody any more."""
        watchers = list(self._watchers.values())
        for watcher in watchers:
            watcher.cancel()
        for watcher in watchers:
            with suppress(asyncio.CancelledError):
                await watcher

    def _serving(self, model: str) -> list[Replica]:
        """Engines that serve a model, or have not told what they serve.

        All where no model is named, or none has it: an engine says best that there is none such.
        """
        if not model or len(self.replicas) == 1:
            return self.replicas
        serving = [r for r in self.replicas if r.models is None or model in r.models]
        if not any(r.models is not None for r in serving):
            for replica in self.replicas:
                replica.ask_models_again()  # an adapter, loaded since
        return serving or self.replicas

    def _candidates(self, members: Sequence[Replica], tried: Sequence[Replica]) -> list[Replica]:
        """Of some engines those that may be asked: those that are well, else those that may be."""
        left = [r for r in members if not r.draining and r not in tried]
        if not left and len(tried) == 1:
            left = [r for r in self.replicas if r is tried[0] and len(members) == 1]
        well = [r for r in left if r.healthy and r.breaker.permits]
        return well or [r for r in left if r.breaker.state is not CircuitState.OPEN]

    def _place(self, request: PlacedRequest, candidates: Sequence[Replica]) -> Placement[Replica]:
        now = self._clock()
        placement = self._placer.place(request, candidates, now)
        replica = placement.replica
        if len(self.replicas) > 1 and self._placer.policy == "prefix":
            replica.prefixes.add(request.digests, now)
        replica.metrics.placed(
            placement.reason, request.num_prompt_tokens, placement.num_hit_tokens
        )
        return placement

    def _watch(self) -> None:
        for replica in self.replicas:
            if replica not in self._watchers:
                self._watchers[replica] = asyncio.create_task(self._keep(replica))

    async def _keep(self, replica: Replica) -> None:
        """Look at an engine as long as it is an upstream or has something to finish."""
        while replica in self.replicas or replica.outstanding:
            await replica.look(for_models=len(self.replicas) > 1)
            await asyncio.sleep(self._health_interval_seconds)
        self.leaving.remove(replica)
        del self._watchers[replica]


def prompt_text(view: BodyView) -> bytes:
    """The prompt as it stands in a body, in the order in which templates write it. O(bytes)."""
    return b"".join([memoryview(getattr(view, name)) for name in PROMPT_FIELDS])


def scope_of(view: BodyView, cache_salt: str) -> str:
    """What an engine's prefix cache keeps apart: sharing scopes by their salt."""
    theirs = bytes(view.cache_salt)  # it holds where the tenant may set it; else it does no harm
    return f"{cache_salt}\0{theirs.decode('utf-8', 'replace')}" if theirs else cache_salt


def _is_same(known: UpstreamConfig, config: UpstreamConfig) -> bool:
    return (known.url, known.api_key) == (config.url, config.api_key)


def _why_not(replica: Replica) -> str:
    if replica.draining:
        return f"{replica.name} is draining"
    wait = replica.breaker.wait_seconds
    return f"{replica.name} is left alone for {wait:.1f} s ({replica.last_error})"


def _unavailable(message: str, wait_seconds: int) -> ApiError:
    seconds = max(wait_seconds, ONE_SECOND)
    return ApiError(
        UNAVAILABLE,
        f"{message}; try again in {seconds} s",
        "api_error",
        code="engine_unavailable",
        headers=[(b"retry-after", str(seconds).encode())],
    )
