"""Forwarding a request to an engine, and its answer to the client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from paceline.api_dialects import Dialect, error_event, in_dialect
from paceline.api_errors import ApiError, upstream_failed
from paceline.middleware.attempts import Attempt
from paceline.middleware.capture import Capture
from paceline.middleware.captured_ids import CapturedIds, CaptureRequest
from paceline.middleware.exchange import JSON, Exchange, RawHeaders
from paceline.middleware.explaining import Asked, Explainer
from paceline.middleware.limiter import Ticket
from paceline.middleware.predicting import PredictedUsage
from paceline.middleware.relay import EventHold
from paceline.middleware.replica import Replica
from paceline.middleware.request_body import BodyView
from paceline.middleware.routing import ReplicaSet
from paceline.middleware.stored_responses import Stored, StoredResponses
from paceline.middleware.upstream import UpstreamError, UpstreamResponse
from paceline.middleware.usage_editing import Hold, UsageStream
from paceline.middleware.usage_reading import MeteredStream

OK: Final = 200
NOT_PASSED_ON: Final = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te"),
        *(b"trailer", b"transfer-encoding", b"upgrade", b"content-length", b"date", b"server"),
        *(b"x-request-id", b"set-cookie"),
    )
)
"""Response headers that are the connection's, or that we set ourselves."""
VECTORS_HEAD: Final = b"metadata"


@dataclass(frozen=True, slots=True)
class Sent:
    """What an engine is sent, and what is done with its answer.

    Attributes:
        body: None for a request without one.
        session: of the conversation, "" if nothing tells.
        scope: of the engine's prefix cache that it uses.
        view: of the client's body.
        captured: what is recorded of the answer, None for nothing.
        ticket: is charged for it, None where nothing limits the request.
        asked: where the engine is noted whose decisions are to be told, None for nowhere.
        stored: where the engine is noted that may keep the answer, None for nowhere.
        only: the engine that must answer it; None for any.
        query: of the URL.
        headers: further ones.
        is_predicted: whether the reply is predicted: how much of that was right is told.
        model: which it asks for where its body does not say.
    """

    body: bytes | None = None
    session: str = ""
    scope: str = field(default="", kw_only=True)
    view: BodyView | None = None
    captured: CaptureRequest | None = None
    ticket: Ticket | None = None
    asked: Asked | None = None
    stored: Stored | None = None
    only: Replica | None = None
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    is_predicted: bool = False
    model: str = ""


class Forwarder:
    """Sends requests to engines, and passes on what they say, as it comes.

    Args:
        replicas: the engines.
        capture: records answers, None for none.
        explainer: asks engines what they decided.
        stored: is told which engine keeps an answer.
        first_byte_timeout_seconds: longest wait for the first byte of a stream's body while another
            engine may be asked, None for as long as an engine may be silent.
    """

    def __init__(
        self,
        replicas: ReplicaSet,
        capture: Capture | None,
        explainer: Explainer,
        stored: StoredResponses,
        *,
        first_byte_timeout_seconds: float | None = None,
    ) -> None:
        self._replicas = replicas
        self._capture = capture
        self._explainer = explainer
        self._stored = stored
        self._first_byte_timeout_seconds = first_byte_timeout_seconds

    async def forward(self, exchange: Exchange, sent: Sent) -> None:
        """Send a request to an engine, or to the next one while nothing has been passed on.

        Raises:
            ApiError: no engine answers, or the one that would cannot do what is asked.
        """
        failure = ""
        seeded_sampling = sent.view is not None and sent.view.is_seeded_sampling
        placed = self._replicas.request(
            sent.session, sent.scope, sent.view, len(sent.body or b""), model=sent.model
        )
        for attempt in self._replicas.attempts(placed, only=sent.only):
            replica = attempt.replica
            if seeded_sampling and replica.config.refuse_seeded_sampling:
                raise ApiError(
                    400,
                    "this engine cannot sample with a seed; leave out seed, or set temperature to "
                    "0",
                    param="seed",
                )
            try:
                with attempt:
                    await self._try(exchange, attempt, sent)
                return
            except UpstreamError as error:
                if sent.ticket is not None:
                    sent.ticket.failed()
                failure = f"{replica.name}: {error}"
        raise self._replicas.failure(failure, placed.model)

    async def _try(self, exchange: Exchange, attempt: Attempt, sent: Sent) -> None:
        """Forward to one engine; the client has been answered then.

        Raises:
            UpstreamError: the engine failed before anything of its answer was passed on.
        """
        ticket = sent.ticket
        exchange.engine = attempt.replica.name
        if exchange.watch is not None:
            exchange.watch.asked()
        if ticket is not None:
            ticket.asking()
        if sent.asked is not None:
            sent.asked.replica = attempt.replica
        if sent.stored is not None:
            sent.stored.replica = attempt.replica
        is_stream = sent.view is not None and sent.view.is_stream
        response = await attempt.send(
            exchange.method,
            exchange.path + sent.query,
            _headers_for(exchange, sent),
            sent.body,
            first_byte_seconds=self._first_byte_timeout_seconds if is_stream else None,
        )
        taking = None
        if self._capture is not None and sent.captured is not None:
            taking = self._capture.taking(sent.captured, response.status)
        if ticket is not None and response.status != OK:
            ticket.failed()
        predicted = None
        if sent.is_predicted and response.status == OK:
            ask = partial(self._explainer.decisions, exchange.request_id, attempt.replica)
            predicted = PredictedUsage(ask)
        try:
            if sent.stored is not None and response.status == OK:
                await self._stored.keep(sent.stored)
            if _is_event_stream(response.headers):
                hold = _hold_of(taking, sent.view, ticket, exchange.dialect)
                await self._relay_stream(exchange, attempt, response, hold, predicted)
            else:
                await self._relay_whole(exchange, attempt, response, taking, sent, predicted)
        finally:
            response.abort()
            if self._capture is not None and taking is not None:
                self._capture.finish(taking, reached_client=exchange.started)

    async def _relay_stream(
        self,
        exchange: Exchange,
        attempt: Attempt,
        response: UpstreamResponse,
        hold: Hold,
        predicted: PredictedUsage | None,
    ) -> None:
        """Pass a stream on as it comes.

        An engine that dies in it leaves whole events and one error event.
        """
        exchange.promise(response.status, _passed_on(response.headers))
        relay = _Relay(exchange, attempt, hold)
        if predicted is None:
            response.pass_to(relay.pass_on)
        try:
            async for chunk in response.chunks():
                ready = relay.push(chunk)
                if not ready:
                    continue
                if predicted is not None:
                    ready = await predicted.events(ready)
                if not exchange.started:
                    await exchange.start(response.status, _passed_on(response.headers))
                await exchange.write(ready)
        except UpstreamError as error:
            if not exchange.started:
                raise
            attempt.failed(error)
            failed = upstream_failed(f"{attempt.replica.name}: {error}")
            await exchange.end(hold.broken_off() + error_event(failed, exchange.dialect))
            return
        attempt.ended(relay.tail)
        rest = hold.rest()
        if predicted is not None:
            rest = await predicted.events(rest)
        if not exchange.started:
            await exchange.start(response.status, _passed_on(response.headers))
        await exchange.end(rest)

    async def _relay_whole(
        self,
        exchange: Exchange,
        attempt: Attempt,
        response: UpstreamResponse,
        taking: CapturedIds | None,
        sent: Sent,
        predicted: PredictedUsage | None,
    ) -> None:
        """Pass a whole answer on, once all of it has come.

        Until then another engine could still give it.
        """
        body = b"".join([chunk async for chunk in response.chunks()])
        attempt.ended(body)
        if exchange.watch is not None:
            exchange.watch.answered(body)
        if sent.ticket is not None and sent.ticket.counts_tokens:
            sent.ticket.meter.read_whole(body)
            if not sent.ticket.meter.is_known:
                sent.ticket.meter.read_whole(_usage_in(response.headers))
        if taking is not None:
            body = taking.whole(body)
        if predicted is not None:
            body = await predicted.whole(body)
        if sent.asked is not None and response.status == OK:
            told = await self._explainer.headers(exchange.request_id, sent.asked)
            exchange.own_headers = [*exchange.own_headers, *told]
        body = in_dialect(response.status, body, exchange.dialect)
        await exchange.answer(response.status, body, _passed_on(response.headers))


class _Relay:
    """One stream on its way to its client.

    Args:
        exchange: with the client.
        attempt: is told of the first piece.
        hold: what the stream goes through.
    """

    __slots__ = ("_attempt", "_before", "_exchange", "_hold", "_last")

    def __init__(self, exchange: Exchange, attempt: Attempt, hold: Hold) -> None:
        self._exchange = exchange
        self._attempt = attempt
        self._hold = hold
        self._before = self._last = b""

    @property
    def tail(self) -> bytes:
        """The last two pieces as they came."""
        return self._before + self._last

    def push(self, chunk: bytes) -> bytes:
        """The next piece has come; returns what is to be passed on, possibly nothing."""
        if not self._last:
            self._attempt.first_byte()
        self._before, self._last = self._last, chunk
        return self._hold.push(chunk)

    def pass_on(self, chunk: bytes) -> bool:
        """Pass the next piece on at once; False if its client has to be waited for."""
        if not self._exchange.writes_now:
            return False
        ready = self.push(chunk)
        if ready:
            self._exchange.write_now(ready)
        return True


def _headers_for(exchange: Exchange, sent: Sent) -> dict[str, str]:
    """What an engine is told in the head of a request."""
    headers = {"accept-encoding": "identity", "x-request-id": exchange.request_id}
    headers |= sent.headers
    headers |= exchange.trace_headers
    if sent.body is not None:
        headers["content-type"] = "application/json"
    return headers


def _hold_of(
    taking: CapturedIds | None, view: BodyView | None, ticket: Ticket | None, dialect: Dialect
) -> Hold:
    """What a stream goes through on its way to the client."""
    hold: Hold = EventHold() if taking is None else taking.stream()
    if ticket is None or view is None or not ticket.counts_tokens:
        return hold
    if dialect is not Dialect.OPENAI:
        return MeteredStream(ticket.meter)
    return UsageStream(ticket.meter, view, None if taking is None else hold)


def _is_event_stream(headers: RawHeaders) -> bool:
    return any(
        name == b"content-type" and value.startswith(b"text/event-stream")
        for name, value in headers
    )


def _usage_in(headers: RawHeaders) -> bytes:
    """What vLLM says in the head of vectors that it sends as bytes, usage included; else b""."""
    return next((value for name, value in headers if name.lower() == VECTORS_HEAD), b"")


def _passed_on(headers: RawHeaders) -> list[tuple[bytes, bytes]]:
    kept = [header for header in headers if header[0] not in NOT_PASSED_ON]
    return kept or [JSON]
