"""The proxy as an ASGI application: routes, and the life of one request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import aiohttp

from paceline.adapters.decisions import DECISIONS_PATH
from paceline.adapters.identity import new_request_id
from paceline.api_errors import ApiError
from paceline.middleware.capture import Capture
from paceline.middleware.config import ProxyConfig, UpstreamConfig, is_loopback
from paceline.middleware.exchange import (
    JSON,
    ClientGoneError,
    Exchange,
    Receive,
    Scope,
    Send,
)
from paceline.middleware.explaining import REQUEST_ID_HEADER, Asked, Explainer
from paceline.middleware.forwarding import Forwarder, Sent
from paceline.middleware.identity import (
    EXPLAIN_HEADER,
    Identity,
    authenticate,
    identify,
    key_of,
)
from paceline.middleware.limit_store import Bound
from paceline.middleware.limiter import Limiter, LimitTiming, Ticket
from paceline.middleware.metrics import ProxyMetrics
from paceline.middleware.openapi import OPENAPI_PATH, encoded
from paceline.middleware.policy_follower import PolicyFollower
from paceline.middleware.request_body import BodyView, view_body, with_fields
from paceline.middleware.routing import Replica, ReplicaSet
from paceline.middleware.shaped_send import shaper_of
from paceline.middleware.upstream import (
    AiohttpUpstream,
    open_session,
)
from paceline.middleware.workload_namer import namer_of
from paceline.policies.tenants import LOCAL_LEARNER, LOCAL_TENANT, PolicyFile, Tenant

logger = logging.getLogger("paceline.proxy")

GENERATION_PATHS: Final = ("/v1/chat/completions", "/v1/completions")
MODELS_PATH: Final = "/v1/models"
TEXT: Final = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
SERVER_ERROR: Final = 500
UNAVAILABLE: Final = 503


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, under the policy that held when they came.

    Attributes:
        tenant: whose key it was.
        policy: None without a policy file.
    """

    tenant: Tenant
    policy: PolicyFile | None


Handler = Callable[[Exchange, Caller], Awaitable[None]]


class Proxy:
    """The proxy between agents and engines; a pure ASGI application.

    Args:
        config: where the engines are and what is allowed.
        policy: tenants, as they are at first; the file is followed. None for one local tenant.
        limit_timing: times of the limiter, if not its own.

    Raises:
        ConfigError, JournalError: what is to be captured cannot be.
    """

    def __init__(
        self,
        config: ProxyConfig,
        policy: PolicyFile | None,
        *,
        limit_timing: LimitTiming | None = None,
    ) -> None:
        self.config = config
        self.metrics = ProxyMetrics()
        self._policies: PolicyFollower | None = None
        if policy is not None and config.policy_file is not None:
            self._policies = PolicyFollower(config.policy_file, policy, self.metrics.registry)
        self._policy = policy
        self._local = LOCAL_LEARNER if config.local_learning else LOCAL_TENANT
        self._replicas = ReplicaSet([])
        self._explainer = Explainer(self.metrics.registry)
        self._forwarder = Forwarder(self._replicas, self.metrics, None, self._explainer)
        self._session: aiohttp.ClientSession | None = None
        self._watchers: list[asyncio.Task[None]] = []
        self._capture: Capture | None = None
        if config.capture is not None:
            self._capture = Capture(config.capture, policy, self.metrics.registry)
        self._namer = namer_of(config, policy, self.metrics.registry)
        self.limiter = Limiter(
            self.metrics.registry,
            None if policy is None else config.limits_redis_url,
            timing=limit_timing,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._serve(Exchange(scope, receive, send))

    @property
    def replicas(self) -> list[Replica]:
        """The engines and what is known of their health; empty until the proxy has started."""
        return self._replicas.replicas

    @property
    def ready(self) -> bool:
        """Whether some engine can be expected to answer."""
        return self._replicas.any_healthy

    async def open(self) -> None:
        """Connect to the engines and start watching them."""
        if self._capture is not None and not await asyncio.to_thread(self._capture.open):
            self._capture = None
        if self._namer is not None:
            await self._namer.open()
        await self.limiter.open()
        session = open_session(connect_timeout_seconds=self.config.connect_timeout_seconds)
        self._session = session
        self._replicas = ReplicaSet(
            [
                Replica(upstream, self._way_to(upstream, session))
                for upstream in self.config.upstreams
            ]
        )
        self._explainer.open(session)
        self._forwarder = Forwarder(self._replicas, self.metrics, self._capture, self._explainer)
        self._watchers = [
            asyncio.create_task(self._replicas.watch(self.config.health_interval_seconds))
        ]
        if self._policies is not None:
            self._watchers.append(asyncio.create_task(self._policies.follow(self._take_policy)))

    def _take_policy(self, policy: PolicyFile) -> None:
        """Requests that come from now on are under this one; those under way keep theirs."""
        self._policy = policy
        if self._capture is not None:
            self._capture.set_policy(policy)
        if self._namer is not None:
            self._namer.set_policy(policy)

    def _way_to(self, upstream: UpstreamConfig, session: aiohttp.ClientSession) -> AiohttpUpstream:
        return AiohttpUpstream(
            session,
            upstream.url,
            upstream.api_key,
            read_timeout_seconds=self.config.read_timeout_seconds,
        )

    async def close(self) -> None:
        """Stop watching, close every connection, publish what was captured."""
        for watcher in self._watchers:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher
        if self._session is not None:
            await self._session.close()
        await self.limiter.close()
        if self._capture is not None:
            await asyncio.to_thread(self._capture.close)
        if self._namer is not None:
            await asyncio.to_thread(self._namer.close)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self.open()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _serve(self, exchange: Exchange) -> None:
        started = time.perf_counter()
        tenant_name = ""
        self.metrics.in_flight.inc()
        try:
            tenant_name = await self._dispatch(exchange)
        except ApiError as error:
            if not exchange.started:
                await exchange.answer(error.status, error.body(), [JSON, *error.headers])
        except ClientGoneError:
            pass
        except Exception:  # counted; the client gets an answer instead of a cut connection
            self.metrics.internal_errors.inc()
            logger.exception("a request to %s failed", exchange.path)
            if not exchange.started:
                failed = ApiError(SERVER_ERROR, "the proxy failed; its log says why", "api_error")
                await exchange.answer(failed.status, failed.body())
        finally:
            await exchange.close()
            self.metrics.in_flight.dec()
            seconds = time.perf_counter() - started
            self.metrics.finished(tenant_name, _route_of(exchange.path), exchange.status, seconds)

    async def _dispatch(self, exchange: Exchange) -> str:
        """Answer the request; returns the tenant's name, "" for routes without one."""
        if exchange.path in ("/health", "/ready", "/metrics", OPENAPI_PATH):
            _require_method(exchange, "GET")
            await self._answer_own(exchange)
            return ""
        handler: Handler
        if exchange.path in GENERATION_PATHS:
            method, handler = "POST", self._generate
        elif exchange.path == MODELS_PATH or exchange.path.startswith(f"{MODELS_PATH}/"):
            method, handler = "GET", self._models
        elif exchange.path.startswith(DECISIONS_PATH):
            method, handler = "GET", self._tell_decisions
        else:
            raise ApiError(
                404,
                f"{exchange.path} is not served here; served are {', '.join(GENERATION_PATHS)} "
                f"and {MODELS_PATH}",
                code="unknown_url",
            )
        _require_method(exchange, method)
        policy = self._policy
        tenant = authenticate(policy, exchange.headers, exchange.client_host, local=self._local)
        await handler(exchange, Caller(tenant, policy))
        return tenant.name

    async def _answer_own(self, exchange: Exchange) -> None:
        if exchange.path == "/health":
            await exchange.answer(200, b'{"status":"ok"}')
        elif exchange.path == OPENAPI_PATH:
            await exchange.answer(200, encoded())
        elif exchange.path == "/ready":
            ready = self.ready
            body = b'{"status":"ready"}' if ready else b'{"status":"no engine answers"}'
            await exchange.answer(200 if ready else UNAVAILABLE, body)
        else:
            self._authorise_metrics(exchange)
            for replica in self.replicas:
                self.metrics.healthy.labels(replica.name).set(replica.healthy)
            await exchange.answer(200, self.metrics.render(), [TEXT])

    def _authorise_metrics(self, exchange: Exchange) -> None:
        admin = self._policy is not None and self._policy.is_admin(key_of(exchange.headers))
        if not admin and not is_loopback(exchange.client_host):
            raise ApiError(
                401,
                "metrics are shown on this machine, or with an admin key",
                code="invalid_api_key",
            )

    async def _models(self, exchange: Exchange, _caller: Caller) -> None:
        await exchange.read_body(max_bytes=0)
        await self._watched(exchange, Sent(), "")

    async def _tell_decisions(self, exchange: Exchange, caller: Caller) -> None:
        await exchange.read_body(max_bytes=0)
        await self._explainer.answer(exchange, caller.tenant.name)

    async def _generate(self, exchange: Exchange, caller: Caller) -> None:
        body = await exchange.read_body(max_bytes=self.config.max_body_bytes)
        view = view_body(body)
        identity = identify(caller.policy, caller.tenant, exchange.headers, view)
        if self._namer is not None:
            identity = await self._namer.named(identity)
        if identity.policy.side_channel != "open":
            exchange.shape(shaper_of(identity, view, self.config.shaping, self.metrics.shaping))
        exchange.request_id = new_request_id()
        is_explained = exchange.headers.get(EXPLAIN_HEADER, "").strip().lower() == "on"
        if is_explained:
            own_id = (REQUEST_ID_HEADER, exchange.request_id.encode())
            exchange.own_headers = [*identity.explained(), own_id]
        ticket = await self._admit(exchange, caller, identity, view, len(body))
        asked = None
        # numbers in a head would show who listens what shaping hides
        if is_explained and identity.policy.side_channel == "open":
            asked = self._explainer.expect(exchange.request_id, identity.tenant.name)
        try:
            await self._generate_admitted(exchange, identity, body, view, ticket, asked)
        finally:
            if ticket is not None:
                self.limiter.finish(ticket)

    async def _admit(
        self,
        exchange: Exchange,
        caller: Caller,
        identity: Identity,
        view: BodyView,
        num_bytes: int,
    ) -> Ticket | None:
        """Let the request in; None if nothing limits it.

        Raises:
            ApiError: 429, it has to wait.
        """
        bounds = _bounds_of(caller, identity)
        if not bounds:
            return None
        ticket = await self.limiter.admit(
            exchange.request_id,
            identity.tenant.name,
            bounds,
            num_bytes=num_bytes,
            most_said=view.most_said,
        )
        exchange.own_headers = [*exchange.own_headers, *ticket.headers]
        return ticket

    async def _generate_admitted(
        self,
        exchange: Exchange,
        identity: Identity,
        body: bytes,
        view: BodyView,
        ticket: Ticket | None,
        asked: Asked | None,
    ) -> None:
        captured = None
        if self._capture is not None:
            captured = self._capture.request(exchange.request_id, identity, view)
        outgoing = with_fields(
            body,
            view,
            xargs=identity.xargs(),
            cache_salt=identity.cache_salt(),
            allow=identity.tenant.allow,
            ask_token_ids=captured is not None,
            priority=identity.policy.priority if self.config.priority_scheduling else 0,
            ask_usage=ticket is not None and ticket.counts_tokens,
        )
        sent = Sent(outgoing, identity.session, view, captured, ticket, asked)
        await self._watched(exchange, sent, identity.tenant.name)

    async def _watched(self, exchange: Exchange, sent: Sent, tenant_name: str) -> None:
        """Forward a request unless its client leaves first.

        Then stop it, which closes the engine's connection.
        """
        this = asyncio.current_task()
        assert this is not None
        left = False

        async def stop_when_left() -> None:
            nonlocal left
            await exchange.client_left()
            left = True
            this.cancel()

        watcher = asyncio.create_task(stop_when_left())
        try:
            await self._forwarder.forward(exchange, sent)
        except asyncio.CancelledError:
            if not left:
                raise
            this.uncancel()
            self.metrics.client_aborts.labels(tenant_name).inc()
            raise ClientGoneError from None
        finally:
            watcher.cancel()


def _bounds_of(caller: Caller, identity: Identity) -> tuple[Bound, ...]:
    """All limits that bind a request: the tenant's, and those of its workload."""
    if caller.policy is None:
        return ()
    limits = caller.policy.limits_of(caller.tenant, identity.workload)
    return tuple(Bound(workload, each) for workload, each in limits)


def _require_method(exchange: Exchange, method: str) -> None:
    if exchange.method != method:
        raise ApiError(
            405,
            f"{exchange.path} takes {method}, not {exchange.method}",
            code="method_not_allowed",
            headers=[(b"allow", method.encode())],
        )


def _route_of(path: str) -> str:
    """A bounded name for the metrics."""
    if path in GENERATION_PATHS:
        return path
    if path.startswith(DECISIONS_PATH):
        return DECISIONS_PATH.rstrip("/")
    return MODELS_PATH if path.startswith(MODELS_PATH) else "other"
