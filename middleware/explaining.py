"""Telling a client what the engine decided for its request: `x-paceline-explain: on`.

The engine is asked for its record when it has answered, for a bounded time, and for requests that
want to be explained alone. Which tenant asked which request is remembered here, and only of these:
an engine's answer is nobody else's.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import aiohttp
import msgspec
from prometheus_client import CollectorRegistry, Counter

from paceline.adapters.decisions import DECISIONS_PATH, VERSION, RequestDecisions
from paceline.api_errors import ApiError
from paceline.middleware.exchange import Exchange
from paceline.middleware.replica import Replica

WAIT_SECONDS: Final = 0.2
"""Longest wait for an engine's record."""
MAX_REMEMBERED: Final = 4096
REMEMBERED_SECONDS: Final = 600.0
MAX_RECORD_BYTES: Final = 16 * 1024
MAX_HEADER_CHARACTERS: Final = 300
RESULTS: Final = ("told", "unknown", "late", "failed", "unreadable", "no_url")
REQUEST_ID_HEADER: Final = b"x-paceline-request-id"
Elsewhere = Callable[[str, str], Awaitable[Replica | None]]
"""The engine of a request by its id and its tenant, as another process knows it."""
OK: Final = 200
NOT_FOUND: Final = 404
UNAVAILABLE: Final = 503


@dataclass(slots=True)
class Asked:
    """A request that wanted to be explained.

    Attributes:
        tenant: whose it is.
        asked_at: monotonic seconds.
        replica: the engine that answers it, None while none was asked.
    """

    tenant: str
    asked_at: float
    replica: Replica | None = None


class Explainer:
    """Reads engines' records for the tenants that they belong to.

    Args:
        registry: of the proxy's metrics.
        clock: monotonic seconds.
    """

    def __init__(
        self, registry: CollectorRegistry, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._asked: OrderedDict[str, Asked] = OrderedDict()
        self._session: aiohttp.ClientSession | None = None
        self._elsewhere: Elsewhere | None = None
        self._results = Counter(
            "paceline_proxy_explained",
            "Engines' records that were asked for, by what came of it.",
            ["result"],
            registry=registry,
        )
        for result in RESULTS:
            self._results.labels(result)

    def open(self, session: aiohttp.ClientSession) -> None:
        """Ask engines through this session from now on."""
        self._session = session

    def ask_elsewhere(self, elsewhere: Elsewhere) -> None:
        """Ask `elsewhere` for what is not known here."""
        self._elsewhere = elsewhere

    def replica_of(self, request_id: str, tenant: str) -> Replica | None:
        """The engine of a tenant's request that is to be explained; None if it has none such."""
        asked = self._asked.get(request_id)
        if asked is None or asked.tenant != tenant:
            return None
        return asked.replica if asked.asked_at >= self._clock() - REMEMBERED_SECONDS else None

    def expect(self, request_id: str, tenant: str) -> Asked:
        """A tenant wants a request explained; the oldest such requests are forgotten. O(1)."""
        now = self._clock()
        asked = self._asked[request_id] = Asked(tenant, now)
        while self._asked and (
            len(self._asked) > MAX_REMEMBERED
            or next(iter(self._asked.values())).asked_at < now - REMEMBERED_SECONDS
        ):
            self._asked.popitem(last=False)
        return asked

    async def headers(self, request_id: str, asked: Asked) -> list[tuple[bytes, bytes]]:
        """What an answer's head says of its engine's decisions; nothing if that cannot be had."""
        record, _ = await self._read(request_id, asked)
        return [] if record is None else headers_of(record)

    async def decisions(self, request_id: str, replica: Replica) -> RequestDecisions | None:
        """An engine's record of a request, None if it cannot be had within `WAIT_SECONDS`."""
        record, _ = await self._read(request_id, Asked("", self._clock(), replica))
        return record

    async def answer(self, exchange: Exchange, tenant: str) -> None:
        """Answer a tenant that asks for the record of one of its requests.

        Raises:
            ApiError: 404, it has no such request, whoever else has; 503, the engine does not
                answer.
        """
        request_id = exchange.path.removeprefix(DECISIONS_PATH)
        replica = self.replica_of(request_id, tenant)
        if replica is None and self._elsewhere is not None:
            replica = await self._elsewhere(request_id, tenant)
        if replica is None:
            raise _unknown()
        record, result = await self._read(request_id, Asked(tenant, self._clock(), replica))
        if record is not None:
            await exchange.answer(OK, msgspec.json.encode(record))
            return
        if result in ("unknown", "no_url"):
            raise _unknown()
        raise ApiError(
            UNAVAILABLE,
            "the engine does not say what it decided; try again",
            "api_error",
            code="engine_unavailable",
        )

    async def _read(self, request_id: str, asked: Asked) -> tuple[RequestDecisions | None, str]:
        """The engine's record, and what came of asking; waits `WAIT_SECONDS` at most."""
        record, result = None, "no_url"
        if asked.replica is not None and asked.replica.config.decisions_url and self._session:
            url = f"{asked.replica.config.decisions_url}{DECISIONS_PATH}{request_id}"
            try:
                async with asyncio.timeout(WAIT_SECONDS):
                    record, result = await _fetch(self._session, url, request_id)
            except TimeoutError:
                result = "late"
            except (aiohttp.ClientError, OSError):
                result = "failed"
        self._results.labels(result).inc()
        return record, result


async def _fetch(
    session: aiohttp.ClientSession, url: str, request_id: str
) -> tuple[RequestDecisions | None, str]:
    async with session.get(url, allow_redirects=False) as response:
        if response.status != OK:
            return None, "unknown" if response.status == NOT_FOUND else "failed"
        body = await response.content.read(MAX_RECORD_BYTES)
        while len(body) < MAX_RECORD_BYTES and not response.content.at_eof():
            body += await response.content.read(MAX_RECORD_BYTES - len(body))
    try:
        record = _records.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None, "unreadable"
    is_right = record.version <= VERSION and record.request_id == request_id
    return (record, "told") if is_right else (None, "unreadable")


def headers_of(record: RequestDecisions) -> list[tuple[bytes, bytes]]:
    """An engine's record as headers of its answer."""
    sources = ", ".join(
        f"{name}={tokens.accepted}/{tokens.drafted}" for name, tokens in record.sources.items()
    )
    shown = {
        "rounds": str(record.rounds),
        "draft-tokens": str(record.draft_tokens),
        "accepted-tokens": str(record.accepted_tokens),
        "draft-sources": sources or "none",
        "reason": record.reason,
        "arm": record.arm,
    }
    return [(f"x-paceline-{name}".encode(), _safe(value)) for name, value in shown.items() if value]


def _safe(value: str) -> bytes:
    """As a header's value: printable ASCII alone, and not without end."""
    kept = value[:MAX_HEADER_CHARACTERS].encode("ascii", "replace")
    return bytes(byte if 0x20 <= byte < 0x7F else 0x3F for byte in kept)  # noqa: PLR2004  ASCII


def _unknown() -> ApiError:
    return ApiError(
        NOT_FOUND,
        "no request of yours has that id; ask with x-paceline-explain: on, and within ten minutes",
        code="unknown_request",
    )


_records: Final = msgspec.json.Decoder(RequestDecisions)
