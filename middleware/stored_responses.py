"""Whose the responses are that engines keep (``/v1/responses`` with ``store``).

An engine keeps responses by id alone, for whoever names one. Here it is remembered which tenant
each belongs to and which engine keeps it, so that one tenant can neither read nor cancel nor go on
from another's, and is led back to the engine that has it. Where a Redis is named all proxies on it,
and all worker processes of one, know of them, and still do when they have been started anew.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from paceline.api_errors import ApiError
from paceline.caches.answer_store import AnswerRecord, AnswerStore
from paceline.caches.journal_client import UNREACHABLE, Client, RedisAddress
from paceline.errors import RecordError
from paceline.middleware.identity import Identity
from paceline.middleware.replica import Replica
from paceline.policies.rules import SideChannel

logger = logging.getLogger("paceline.responses")

MAX_STORED: Final = 16_384
ID_PREFIX: Final = "resp_"
OPENING: Final = "opening:"
WAIT_SECONDS: Final = 0.25
"""Longest that a request waits for Redis."""
LOST_SECONDS: Final = 2.0
"""A Redis that did not answer is asked again after this time."""
FAILURES: Final = (*UNREACHABLE, TimeoutError)


@dataclass(slots=True, eq=False)
class Stored:
    """A response that an engine may keep.

    Attributes:
        response_id: the proxy's id of it.
        tenant: whose it is.
        session: of its conversation, "" if nothing told.
        side_channel: shape in which it is told.
        replica: the engine that has it, None while none was asked.
    """

    response_id: str
    tenant: str
    session: str
    side_channel: SideChannel
    replica: Replica | None = None


class StoredResponses:
    """Responses by id; the oldest are forgotten first.

    Args:
        named: the engine of a name, None if there is none such.
        redis_url: of the Redis that knows them for all proxies; None for this process alone.
        max_stored: most that are remembered in this process.
        clock: monotonic seconds.

    Raises:
        JournalError: the URL cannot be understood.
    """

    def __init__(
        self,
        named: Callable[[str], Replica | None],
        redis_url: str | None = None,
        *,
        max_stored: int = MAX_STORED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._named = named
        self._address = None if redis_url is None else RedisAddress(redis_url)
        self._max_stored = max_stored
        self._clock = clock
        self._stored: OrderedDict[str, Stored] = OrderedDict()
        self._client: Client | None = None
        self._connecting = asyncio.Lock()
        self._lost_at = -math.inf

    async def open(self) -> None:
        """Connect to Redis, if one is named; if it is away, later."""
        if self._address is not None:
            try:
                async with asyncio.timeout(LOST_SECONDS):
                    await self._store()
            except FAILURES as error:
                self._lost(error)

    async def close(self) -> None:
        """Disconnect."""
        client, self._client = self._client, None
        if client is not None:
            with suppress(*FAILURES):
                await client.aclose()

    def expect(self, response_id: str, identity: Identity) -> Stored:
        """A response of that id is asked for. O(1)."""
        stored = self._stored[response_id] = Stored(
            response_id, identity.tenant.name, identity.session, identity.policy.side_channel
        )
        if len(self._stored) > self._max_stored:
            self._stored.popitem(last=False)
        return stored

    async def keep(self, stored: Stored) -> None:
        """An engine answers with it: have the other processes know before the client does.

        Where Redis does not take it in time only this process knows.
        """
        if self._address is None or stored.replica is None:
            return
        record = AnswerRecord(
            engine=stored.replica.name, session=stored.session, side_channel=stored.side_channel
        )
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await (await self._store()).keep(stored.tenant, stored.response_id, record)
        except FAILURES as error:
            self._lost(error)

    async def find(self, response_id: str, tenant: str) -> Stored:
        """A tenant's own response.

        Raises:
            ApiError: 404, it has none of that id, whoever else has; 503, Redis would know and does
                not answer.
        """
        stored = self._stored.get(response_id)
        if stored is None and self._address is not None:
            stored = await self._find_shared(response_id, tenant)
        if stored is None or stored.replica is None or stored.tenant != tenant:
            raise ApiError(
                404,
                f"Response with id {response_id[:200]!r} not found; it is known to the proxy that "
                "answered with it, until that or its engine ends",
                code="response_not_found",
                param="response_id",
            )
        return stored

    async def _find_shared(self, response_id: str, tenant: str) -> Stored | None:
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                record = await (await self._store()).find(tenant, response_id)
        except RecordError as error:
            logger.warning("%s", error)
            return None
        except FAILURES as error:
            self._lost(error)
            raise ApiError(
                503,
                "whose this response is cannot be looked up now; try again in a moment",
                "api_error",
                code="responses_unavailable",
                headers=[(b"retry-after", b"2")],
            ) from error
        if record is None:
            return None
        replica = self._named(record.engine)
        return Stored(response_id, tenant, record.session, record.side_channel, replica)

    async def _store(self) -> AnswerStore:
        """Raises what says that Redis cannot be reached; not again while it was lost just now."""
        assert self._address is not None
        if self._clock() - self._lost_at < LOST_SECONDS:
            raise ConnectionError("Redis was lost a moment ago")
        async with self._connecting:
            if self._client is None:
                self._client = await self._address.connect_async(socket_seconds=LOST_SECONDS)
        return AnswerStore(self._client)

    def _lost(self, error: BaseException) -> None:
        assert self._address is not None
        if self._clock() - self._lost_at > LOST_SECONDS:
            logger.warning(
                "%s is away (%s: %s); kept responses are known to this process alone meanwhile",
                self._address.shown,
                type(error).__name__,
                error,
            )
            self._lost_at = self._clock()


def continuing(identity: Identity, earlier: Stored) -> Identity:
    """The request that goes on from an earlier response, in its session unless it names its own."""
    if identity.session and not identity.session.startswith(OPENING):
        return identity
    return replace(identity, session=earlier.session)
