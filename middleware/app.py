"""The proxy as an ASGI application: routes, and the life of one request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import aiohttp

from paceline.adapters.identity import new_request_id
from paceline.adapters.prediction import PREDICTION_KEY
from paceline.api_dialects import error_body
from paceline.api_errors import ApiError
from paceline.middleware.capture import Capture
from paceline.middleware.config import ProxyConfig, UpstreamConfig
from paceline.middleware.dashboard_way import DashboardWay, is_dashboard
from paceline.middleware.endpoints import (
    MODELS_PATH,
    Endpoint,
    Job,
    endpoint_of,
    queried,
    route_of,
    stored_id,
)
from paceline.middleware.engine_client import Connections, HttpUpstream
from paceline.middleware.exchange import (
    JSON,
    ClientGoneError,
    Exchange,
    Receive,
    Scope,
    Send,
)
from paceline.middleware.explaining import REQUEST_ID_HEADER, Explainer
from paceline.middleware.forwarding import Forwarder, Sent
from paceline.middleware.identity import (
    EXPLAIN_HEADER,
    Identity,
    authenticate,
    identify,
)
from paceline.middleware.limit_answers import require_countable
from paceline.middleware.limit_store import Bound
from paceline.middleware.limiter import Limiter, LimitTiming, Ticket
from paceline.middleware.metrics import ProxyMetrics
from paceline.middleware.observing import Observer
from paceline.middleware.own_routes import OwnRoutes
from paceline.middleware.policy_follower import PolicyFollower
from paceline.middleware.predicting import predicted_text
from paceline.middleware.replica import Replica
from paceline.middleware.request_body import BodyView, view_body, with_fields
from paceline.middleware.routing import ReplicaSet, scope_of
from paceline.middleware.service_tiers import served_tier
from paceline.middleware.shaped_send import shaper_of
from paceline.middleware.siblings import Siblings
from paceline.middleware.stored_responses import ID_PREFIX, Stored, StoredResponses, continuing
from paceline.middleware.tracing import Tracing
from paceline.middleware.upstream import open_session
from paceline.middleware.upstream_follower import UpstreamFollower
from paceline.middleware.workload_namer import namer_of
from paceline.policies.rules import SideChannel
from paceline.policies.tenants import LOCAL_LEARNER, LOCAL_TENANT, PolicyFile, Tenant

logger = logging.getLogger("paceline.proxy")

PRIORITY_HEADER: Final = "x-vllm-priority"
OK: Final = 200
SERVER_ERROR: Final = 500


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, under the policy that held when they came.

    Attributes:
        tenant: whose key it was.
        policy: None without a policy file.
        endpoint: what they ask for.
    """

    tenant: Tenant
    policy: PolicyFile | None
    endpoint: Endpoint


Handler = Callable[[Exchange, Caller], Awaitable[None]]


class Proxy:
    """The proxy between agents and engines; a pure ASGI application.

    Args:
        config: where the engines are and what is allowed.
        policy: tenants, as they are at first; the file is followed. None for one local tenant.
        limit_timing: times of the limiter, if not its own.
        config_file: where `config` was read; its upstreams are followed. None follows nothing.
        siblings: the other worker processes of this proxy, None where it is the only one.

    Raises:
        ConfigError, JournalError: what is to be captured cannot be.
    """

    def __init__(
        self,
        config: ProxyConfig,
        policy: PolicyFile | None,
        *,
        limit_timing: LimitTiming | None = None,
        config_file: Path | None = None,
        siblings: Siblings | None = None,
    ) -> None:
        self.config = config
        self.metrics = ProxyMetrics()
        self._policies: PolicyFollower | None = None
        if policy is not None and config.policy_file is not None:
            self._policies = PolicyFollower(config.policy_file, policy, self.metrics.registry)
        self._policy = policy
        self._local = LOCAL_LEARNER if config.local_learning else LOCAL_TENANT
        self._upstreams: UpstreamFollower | None = None
        if config_file is not None:
            self._upstreams = UpstreamFollower(config_file, config, self.metrics.registry)
        self._replicas = ReplicaSet(config.routing, self.metrics.routes)
        self._explainer = Explainer(self.metrics.registry)
        self._forwarder: Forwarder | None = None
        self._stored = StoredResponses(self._replicas.named, config.limits_redis_url)
        self._own = OwnRoutes(self.metrics, self._replicas, self._explainer, siblings)
        self._handlers: dict[Job, Handler] = {
            Job.GENERATE: self._generate,
            Job.LIST_MODELS: self._models,
            Job.READ_STORED: self._read_stored,
            Job.READ_DECISIONS: self._tell_decisions,
        }
        self._session: aiohttp.ClientSession | None = None
        self._connections = Connections(connect_timeout_seconds=config.connect_timeout_seconds)
        self._watchers: list[asyncio.Task[None]] = []
        self._capture: Capture | None = None
        if config.capture is not None:
            self._capture = Capture(config.capture, policy, self.metrics.registry)
        self._dashboard = DashboardWay(config)
        tracing = None if config.tracing is None else Tracing(config.tracing)
        self._observer = Observer(self.metrics, tracing)
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
        await self._stored.open()
        session = open_session(connect_timeout_seconds=self.config.connect_timeout_seconds)
        self._session = session
        self._replicas.open(
            self.config.upstreams,
            self._way_to,
            health_interval_seconds=self.config.health_interval_seconds,
        )
        self._explainer.open(session)
        self._dashboard.open(self._connections)
        self._forwarder = Forwarder(
            self._replicas,
            self._capture,
            self._explainer,
            self._stored,
            first_byte_timeout_seconds=self.config.first_byte_timeout_seconds,
        )
        self._watchers = []
        if self._upstreams is not None:
            take = self._replicas.update
            self._watchers.append(asyncio.create_task(self._upstreams.follow(take)))
        if self._policies is not None:
            self._watchers.append(asyncio.create_task(self._policies.follow(self._take_policy)))
        await self._own.open()

    def _take_policy(self, policy: PolicyFile) -> None:
        """Requests that come from now on are under this one; those under way keep theirs."""
        self._policy = policy
        if self._capture is not None:
            self._capture.set_policy(policy)
        if self._namer is not None:
            self._namer.set_policy(policy)

    def stop_answers(self) -> None:
        """End what is still under way: streams with an error event, others with a 503."""
        self._replicas.stop()

    def _way_to(self, upstream: UpstreamConfig) -> HttpUpstream:
        return HttpUpstream(
            self._connections,
            upstream.url,
            upstream.api_key,
            read_timeout_seconds=self.config.read_timeout_seconds,
        )

    async def close(self) -> None:
        """Stop watching, close every connection, publish what was captured."""
        await self._own.close()
        await self._replicas.close()
        for watcher in self._watchers:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher
        await self._connections.close()
        if self._session is not None:
            await self._session.close()
        await self.limiter.close()
        await self._stored.close()
        await asyncio.to_thread(self._observer.close)
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
        self.metrics.num_in_flight += 1
        try:
            tenant_name = await self._dispatch(exchange)
        except ApiError as error:
            if not exchange.started:
                body = error_body(error, exchange.dialect)
                await exchange.answer(error.status, body, [JSON, *error.headers])
        except ClientGoneError:
            pass
        except Exception:  # counted; the client gets an answer instead of a cut connection
            self.metrics.internal_errors.inc()
            logger.exception("a request to %s failed", exchange.path)
            if not exchange.started:
                failed = ApiError(SERVER_ERROR, "the proxy failed; its log says why", "api_error")
                await exchange.answer(failed.status, error_body(failed, exchange.dialect))
        finally:
            await exchange.close()
            self.metrics.num_in_flight -= 1
            seconds = time.perf_counter() - started
            self.metrics.finished(tenant_name, route_of(exchange.path), exchange.status, seconds)

    async def _dispatch(self, exchange: Exchange) -> str:
        """Answer the request; returns the tenant's name, "" for routes without one."""
        if self._own.serves(exchange.path):
            await self._own.answer(exchange, self._policy)
            return ""
        if is_dashboard(exchange.path):
            await self._dashboard.answer(exchange, self._policy)
            return ""
        endpoint = endpoint_of(exchange.method, exchange.path)
        policy = self._policy
        tenant = authenticate(policy, exchange.headers, exchange.client_host, local=self._local)
        caller = Caller(tenant, policy, endpoint)
        await self._handlers[endpoint.job](exchange, caller)
        return tenant.name

    async def _models(self, exchange: Exchange, _caller: Caller) -> None:
        """What one engine tells, or all of them where they serve different models."""
        await exchange.read_body(max_bytes=0)
        model = exchange.path.removeprefix(MODELS_PATH).removeprefix("/")
        if not model and (listed := self._replicas.models()) is not None:
            await exchange.answer(OK, listed, [JSON])
            return
        await self._watched(exchange, Sent(model=model), "")

    async def _tell_decisions(self, exchange: Exchange, caller: Caller) -> None:
        await exchange.read_body(max_bytes=0)
        await self._explainer.answer(exchange, caller.tenant.name)

    async def _read_stored(self, exchange: Exchange, caller: Caller) -> None:
        """Pass on what is asked of a response to the engine that keeps it."""
        await exchange.read_body(max_bytes=self.config.max_body_bytes)
        stored = await self._stored.find(stored_id(exchange.path), caller.tenant.name)
        self._shape(exchange, stored.tenant, stored.side_channel, BodyView())
        sent = Sent(only=stored.replica, query=queried(exchange.query))
        await self._watched(exchange, sent, caller.tenant.name)

    async def _generate(self, exchange: Exchange, caller: Caller) -> None:
        body = await exchange.read_body(max_bytes=self.config.max_body_bytes)
        view = view_body(body)
        identity = identify(caller.policy, caller.tenant, exchange.headers, view)
        earlier = await self._earlier(caller, view)
        if earlier is not None:
            identity = continuing(identity, earlier)
        if self._namer is not None and caller.endpoint.takes.xargs:
            identity = await self._namer.named(identity)
        self._observer.begin(exchange, identity, body)
        self._shape(exchange, identity.tenant.name, identity.policy.side_channel, view)
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
            sent = self._outgoing(exchange, caller.endpoint, identity, body, view, ticket)
            if asked is not None or earlier is not None:
                sent = replace(sent, asked=asked, only=None if earlier is None else earlier.replica)
            await self._watched(exchange, sent, identity.tenant.name)
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
            ApiError: 429, it has to wait; 400, it could not be counted.
        """
        bounds = _bounds_of(caller, identity)
        if not bounds:
            return None
        require_countable(caller.endpoint, identity.tenant.name, view, bounds)
        ticket = await self.limiter.admit(
            exchange.request_id,
            identity.tenant.name,
            bounds,
            num_bytes=num_bytes,
            most_said=view.most_said,
            charge=caller.endpoint.charge,
        )
        exchange.own_headers = [*exchange.own_headers, *ticket.headers]
        return ticket

    def _shape(self, exchange: Exchange, tenant: str, shape: SideChannel, view: BodyView) -> None:
        """Have the answer written as the policy wants it."""
        if shape != "open":
            shaping, metrics = self.config.shaping, self.metrics.shaping
            exchange.shape(shaper_of(tenant, shape, view, shaping, metrics))

    async def _earlier(self, caller: Caller, view: BodyView) -> Stored | None:
        """The response that a request goes on from.

        Raises:
            ApiError: 404, it is not the tenant's.
        """
        if not caller.endpoint.takes.request_id or view.previous_response is None:
            return None
        return await self._stored.find(view.previous_response, caller.tenant.name)

    def _outgoing(
        self,
        exchange: Exchange,
        endpoint: Endpoint,
        identity: Identity,
        body: bytes,
        view: BodyView,
        ticket: Ticket | None,
    ) -> Sent:
        """What an engine is sent, with all of ours that its schema has a place for.

        Raises:
            ApiError: 400, what its client predicts cannot be understood.
        """
        takes, policy = endpoint.takes, identity.policy
        salt = identity.cache_salt()
        scope = scope_of(view, salt)
        if not (takes.xargs or takes.cache_salt):
            return Sent(body, identity.session, view, ticket=ticket, scope=scope)
        captured = None
        if self._capture is not None and takes.xargs:
            captured = self._capture.request(
                exchange.request_id, identity, view, tells_ids=takes.token_ids
            )
        xargs = identity.xargs()
        predicted = predicted_text(view) if takes.prediction else ""
        is_predicted = bool(predicted) and "memory" in policy.speculation.sources
        if is_predicted:
            xargs[PREDICTION_KEY] = predicted
        tier = served_tier(view, policy.priority, is_scheduled=self.config.priority_scheduling)
        exchange.own_headers = [*exchange.own_headers, *tier.headers()]
        is_stored = takes.request_id and view.is_stored and policy.record
        response_id = ID_PREFIX + exchange.request_id if takes.request_id else ""
        outgoing = with_fields(
            body,
            view,
            xargs=xargs if takes.xargs else None,
            cache_salt=salt,
            allow=identity.tenant.allow,
            ask_token_ids=captured is not None,
            priority=tier.priority if takes.priority else 0,
            ask_usage=takes.usage and ticket is not None and ticket.counts_tokens,
            request_id=response_id,
            is_stored=policy.record or not takes.request_id,
            service_tier=tier.granted if tier.is_changed else "",
        )
        headers = {}
        if tier.priority and takes.priority_header:
            headers[PRIORITY_HEADER] = str(tier.priority)
        stored = self._stored.expect(response_id, identity) if is_stored else None
        return Sent(
            outgoing,
            identity.session,
            view,
            captured,
            ticket,
            scope=scope,
            stored=stored,
            headers=headers,
            is_predicted=is_predicted,
        )

    async def _watched(self, exchange: Exchange, sent: Sent, tenant_name: str) -> None:
        """Forward a request unless its client leaves first.

        Then stop it, which closes the engine's connection.
        """
        this = asyncio.current_task()
        assert this is not None
        left = False

        def stop() -> None:
            nonlocal left
            left = True
            this.cancel()

        assert self._forwarder is not None
        unwatch = exchange.watch_client(stop)
        try:
            await self._forwarder.forward(exchange, sent)
        except asyncio.CancelledError:
            if not left:
                raise
            this.uncancel()
            self.metrics.client_aborts.labels(tenant_name).inc()
            raise ClientGoneError from None
        finally:
            unwatch()


def _bounds_of(caller: Caller, identity: Identity) -> tuple[Bound, ...]:
    """All limits that bind a request: the tenant's, and those of its workload."""
    if caller.policy is None:
        return ()
    limits = caller.policy.limits_of(caller.tenant, identity.workload)
    return tuple(Bound(workload, each) for workload, each in limits)
