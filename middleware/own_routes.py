"""What the proxy answers by itself: whether it runs, its metrics, its document, its operators.

Of a proxy with several worker processes the one that is asked answers for all of them.
"""

from __future__ import annotations

from typing import Final

import msgspec
from prometheus_client import Gauge

from paceline.api_errors import ApiError
from paceline.middleware.admin import ADMIN_PATH, AdminRoutes, statuses_of
from paceline.middleware.config import is_loopback
from paceline.middleware.endpoints import require_method
from paceline.middleware.exchange import Exchange
from paceline.middleware.explaining import Explainer
from paceline.middleware.identity import key_of
from paceline.middleware.joined_metrics import gathered, joined
from paceline.middleware.metrics import ProxyMetrics
from paceline.middleware.openapi import OPENAPI_PATH, encoded
from paceline.middleware.replica import Replica
from paceline.middleware.routing import ReplicaSet
from paceline.middleware.siblings import (
    AskDrained,
    AskExplained,
    AskMetrics,
    AskUpstreams,
    Question,
    SetDrained,
    Siblings,
)
from paceline.policies.tenants import PolicyFile

TEXT: Final = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
ROOT_PATH: Final = "/"
"""Claude Code asks for its head before the first request."""
PATHS: Final = (ROOT_PATH, "/health", "/ready", "/metrics", OPENAPI_PATH)
UNAVAILABLE: Final = 503


class OwnRoutes:
    """Answers what no engine is asked for.

    Args:
        metrics: of this process.
        replicas: the engines.
        explainer: knows which engine answered what is to be explained.
        siblings: the other worker processes, None where there are none.
    """

    def __init__(
        self,
        metrics: ProxyMetrics,
        replicas: ReplicaSet,
        explainer: Explainer,
        siblings: Siblings | None,
    ) -> None:
        self._metrics = metrics
        self._replicas = replicas
        self._explainer = explainer
        self._siblings = siblings
        self._admin = AdminRoutes(replicas, siblings)
        if siblings is not None:
            Gauge(
                "paceline_proxy_worker_started_timestamp_seconds",
                "When a worker process began.",
                registry=metrics.registry,
            ).set_to_current_time()

    async def open(self) -> None:
        """Answer the other workers, and drain the engines that they have drained."""
        if self._siblings is None:
            return
        await self._siblings.open(self.told)
        self._explainer.ask_elsewhere(self._find_explained)
        for answer in (await self._siblings.ask(AskDrained())).values():
            for name in msgspec.json.decode(answer or b"[]", type=list[str]):
                self._replicas.drain(name, drained=True)

    async def close(self) -> None:
        """Answer the other workers no more."""
        if self._siblings is not None:
            await self._siblings.close()

    def told(self, question: Question) -> bytes:
        """What this process tells another one."""
        match question:
            case AskMetrics():
                self._replicas.report()
                return gathered(self._metrics.registry)
            case SetDrained(name, drained):
                self._replicas.drain(name, drained=drained)
                return msgspec.json.encode(statuses_of(self._replicas))
            case AskUpstreams():
                return msgspec.json.encode(statuses_of(self._replicas))
            case AskDrained():
                drained_names = [each.name for each in self._replicas.replicas if each.drained]
                return msgspec.json.encode(drained_names)
            case AskExplained(request_id, tenant):
                replica = self._explainer.replica_of(request_id, tenant)
                return b"" if replica is None else replica.name.encode()

    def serves(self, path: str) -> bool:
        """Whether a path is answered here."""
        return path in PATHS or path.startswith(ADMIN_PATH)

    async def answer(self, exchange: Exchange, policy: PolicyFile | None) -> None:
        """Answer a request for a path that `serves` holds of.

        Raises:
            ApiError: who asks may not, the method is wrong, or there is no such thing.
        """
        if exchange.path.startswith(ADMIN_PATH):
            await self._admin.answer(exchange, policy)
            return
        if exchange.path != ROOT_PATH or exchange.method != "HEAD":
            require_method(exchange.method, exchange.path, "GET")
        if exchange.path in (ROOT_PATH, "/health"):
            await exchange.answer(200, b'{"status":"ok"}')
        elif exchange.path == OPENAPI_PATH:
            await exchange.answer(200, encoded())
        elif exchange.path == "/ready":
            ready = self._replicas.any_healthy
            body = b'{"status":"ready"}' if ready else b'{"status":"no engine answers"}'
            await exchange.answer(200 if ready else UNAVAILABLE, body)
        else:
            _authorise_metrics(exchange, policy)
            await exchange.answer(200, await self._page(), [TEXT])

    async def _page(self) -> bytes:
        self._replicas.report()
        if self._siblings is None:
            return self._metrics.render()
        others = await self._siblings.ask(AskMetrics())
        parts = {index: part for index, part in others.items() if part is not None}
        return joined({**parts, self._siblings.index: gathered(self._metrics.registry)})

    async def _find_explained(self, request_id: str, tenant: str) -> Replica | None:
        assert self._siblings is not None
        answers = await self._siblings.ask(AskExplained(request_id, tenant))
        names = {answer.decode() for answer in answers.values() if answer}
        return next((each for each in self._replicas.replicas if each.name in names), None)


def _authorise_metrics(exchange: Exchange, policy: PolicyFile | None) -> None:
    is_admin = policy is not None and policy.is_admin(key_of(exchange.headers))
    if not is_admin and not is_loopback(exchange.client_host):
        raise ApiError(
            401,
            "metrics are shown on this machine, or with an admin key",
            code="invalid_api_key",
        )
