"""Forwarding a request to an engine, and its answer to the client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from paceline.api_errors import ApiError, upstream_failed
from paceline.middleware.capture import Capture
from paceline.middleware.captured_ids import CapturedIds, CaptureRequest
from paceline.middleware.exchange import JSON, Exchange, RawHeaders
from paceline.middleware.explaining import Asked, Explainer
from paceline.middleware.limiter import Ticket
from paceline.middleware.metrics import ProxyMetrics
from paceline.middleware.relay import EventHold
from paceline.middleware.request_body import BodyView
from paceline.middleware.routing import Replica, ReplicaSet
from paceline.middleware.upstream import UpstreamError, UpstreamResponse
from paceline.middleware.usage_editing import Hold, UsageStream

OK: Final = 200
NOT_PASSED_ON: Final = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te"),
        *(b"trailer", b"transfer-encoding", b"upgrade", b"content-length", b"date", b"server"),
        *(b"x-request-id", b"set-cookie"),
    )
)
"""Response headers that are the connection's, or that we set ourselves."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What an engine is sent, and what is done with its answer.

    Attributes:
        body: None for a request without one.
        session: of the conversation, "" if nothing tells.
        view: of the client's body.
        captured: what is recorded of the answer, None for nothing.
        ticket: is charged for it, None where nothing limits the request.
        asked: where the engine is noted whose decisions are to be told, None for nowhere.
    """

    body: bytes | None = None
    session: str = ""
    view: BodyView | None = None
    captured: CaptureRequest | None = None
    ticket: Ticket | None = None
    asked: Asked | None = None


class Forwarder:
    """Sends requests to engines, and passes on what they say, as it comes.

    Args:
        replicas: the engines.
        metrics: counts what fails.
        capture: records answers, None for none.
        explainer: asks engines what they decided.
    """

    def __init__(
        self,
        replicas: ReplicaSet,
        metrics: ProxyMetrics,
        capture: Capture | None,
        explainer: Explainer,
    ) -> None:
        self._replicas = replicas
        self._metrics = metrics
        self._capture = capture
        self._explainer = explainer

    async def forward(self, exchange: Exchange, sent: Sent) -> None:
        """Send a request to its session's engine, or to the next while nothing has come back.

        Raises:
            ApiError: no engine answers, or the one that would cannot do what is asked.
        """
        failure = "no engine is configured"
        seeded_sampling = sent.view is not None and sent.view.is_seeded_sampling
        for replica in self._attempts(sent.session):
            if seeded_sampling and replica.config.refuse_seeded_sampling:
                raise ApiError(
                    400,
                    "this engine cannot sample with a seed; leave out seed, or set temperature to "
                    "0",
                    param="seed",
                )
            replica.outstanding += 1
            try:
                if await self._try(exchange, replica, sent):
                    return
            except UpstreamError as error:
                if sent.ticket is not None:
                    sent.ticket.failed()
                failure = f"{replica.name}: {error}"
                replica.failed(str(error))
                self._metrics.upstream_failures.labels(replica.name).inc()
            finally:
                replica.outstanding -= 1
        raise upstream_failed(failure)

    def _attempts(self, session: str) -> list[Replica]:
        """The engines to try, in order.

        A lone one is tried twice: its kept-alive connection may have been stale.
        """
        ranked = self._replicas.ranked(session)
        return ranked * 2 if len(ranked) == 1 else ranked

    async def _try(self, exchange: Exchange, replica: Replica, sent: Sent) -> bool:
        """Forward to one engine; True if the client has been answered.

        Raises:
            UpstreamError: the engine failed before anything of its answer was passed on.
        """
        ticket = sent.ticket
        headers = {"accept-encoding": "identity", "x-request-id": exchange.request_id}
        headers |= exchange.trace_headers
        exchange.engine = replica.name
        if sent.body is not None:
            headers["content-type"] = "application/json"
        if ticket is not None:
            ticket.asking()
        if sent.asked is not None:
            sent.asked.replica = replica
        response = await replica.upstream.send(exchange.method, exchange.path, headers, sent.body)
        taking = None
        if self._capture is not None and sent.captured is not None:
            taking = self._capture.taking(sent.captured, response.status)
        if ticket is not None and response.status != OK:
            ticket.failed()
        try:
            if _is_event_stream(response.headers):
                hold = _hold_of(taking, sent.view, ticket)
                await self._relay_stream(exchange, replica, response, hold)
            else:
                await self._relay_whole(exchange, response, taking, sent)
        finally:
            response.abort()
            if self._capture is not None and taking is not None:
                self._capture.finish(taking, reached_client=exchange.started)
        return True

    async def _relay_stream(
        self,
        exchange: Exchange,
        replica: Replica,
        response: UpstreamResponse,
        hold: Hold,
    ) -> None:
        """Pass a stream on as it comes.

        An engine that dies in it leaves whole events and one error event.
        """
        exchange.promise(response.status, _passed_on(response.headers))
        try:
            async for chunk in response.chunks():
                ready = hold.push(chunk)
                if not ready:
                    continue
                if not exchange.started:
                    await exchange.start(response.status, _passed_on(response.headers))
                await exchange.write(ready)
        except UpstreamError as error:
            if not exchange.started:
                raise
            replica.failed(str(error))
            self._metrics.upstream_failures.labels(replica.name).inc()
            failed = upstream_failed(f"{replica.name}: {error}").event()
            await exchange.end(hold.broken_off() + failed)
            return
        rest = hold.rest()
        if not exchange.started:
            await exchange.start(response.status, _passed_on(response.headers))
        await exchange.end(rest)

    async def _relay_whole(
        self,
        exchange: Exchange,
        response: UpstreamResponse,
        taking: CapturedIds | None,
        sent: Sent,
    ) -> None:
        """Pass a whole answer on, once all of it has come.

        Until then another engine could still give it.
        """
        body = b"".join([chunk async for chunk in response.chunks()])
        if exchange.watch is not None:
            exchange.watch.answered(body)
        if sent.ticket is not None and sent.ticket.counts_tokens:
            sent.ticket.meter.read_whole(body)
        if taking is not None:
            body = taking.whole(body)
        if sent.asked is not None and response.status == OK:
            told = await self._explainer.headers(exchange.request_id, sent.asked)
            exchange.own_headers = [*exchange.own_headers, *told]
        await exchange.answer(response.status, body, _passed_on(response.headers))


def _hold_of(taking: CapturedIds | None, view: BodyView | None, ticket: Ticket | None) -> Hold:
    """What a stream goes through on its way to the client."""
    hold: Hold = EventHold() if taking is None else taking.stream()
    if ticket is None or view is None or not ticket.counts_tokens:
        return hold
    return UsageStream(ticket.meter, view, None if taking is None else hold)


def _is_event_stream(headers: RawHeaders) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in headers
    )


def _passed_on(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    kept = [(name.lower(), value) for name, value in headers if name.lower() not in NOT_PASSED_ON]
    return kept or [JSON]
