"""One try at one engine: what it is charged for, and what comes of it.

A request is sent again only while nothing of an answer has been passed on. An engine that could not
be connected to has done nothing, so that asking another one is free; each other failure counts
against the retries: a request that ends engines must not reach all of them.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Protocol, Self

from paceline.middleware.placement import PlacedRequest, Placement
from paceline.middleware.replica import Replica
from paceline.middleware.upstream import UpstreamError, UpstreamResponse

NOT_SERVING: Final = (502, 503, 504)
"""Statuses with which an engine, or what stands before it, says that it does not serve now."""
OVERLOADED: Final = 503
"""An engine that says this is well: it is no reason to leave it alone."""


class Learner(Protocol):
    """What an attempt tells of answers."""

    @property
    def stopping(self) -> bool:
        """Whether the proxy ends, and gives up what runs by itself."""

    def learn(self, tail: bytes) -> None:
        """Learn from an answer's end how long answers are."""


class Attempt:
    """One try at one engine; a context that accounts for it.

    Leaving it by an `UpstreamError` counts against the engine, by anything else does not.

    Args:
        placement: the engine, and why.
        request: what is placed.
        replicas: where what answers say of their length is learned.
        is_last: whether no other engine may be asked after it.
    """

    def __init__(
        self,
        placement: Placement[Replica],
        request: PlacedRequest,
        replicas: Learner,
        *,
        is_last: bool,
    ) -> None:
        self.replica = placement.replica
        self.was_sent = True
        self._request = request
        self._replicas = replicas
        self._is_last = is_last
        self._is_trial = False
        self._has_failed = False
        self._is_overload = False
        self._unread = max(request.num_prompt_tokens - placement.num_hit_tokens, 0.0)
        self._given_up = ""
        self._timer: asyncio.Timeout | None = None
        self._response: UpstreamResponse | None = None
        self._asked_at = 0.0
        self._patience: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        replica = self.replica
        self._is_trial = replica.breaker.begin()
        replica.running.add(self)
        replica.outstanding += 1
        replica.outstanding_tokens += self._unread + self._request.num_said
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        replica = self.replica
        replica.running.discard(self)
        self._be_patient()
        replica.outstanding -= 1
        replica.outstanding_tokens -= self._unread + self._request.num_said
        if not replica.outstanding:
            replica.outstanding_tokens = 0.0  # what rounding has left
        if isinstance(error, UpstreamError):
            self.failed(error)
        elif error is None and not self._has_failed:
            replica.breaker.succeeded()
        if self._is_trial:
            replica.breaker.abandon()

    async def send(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes | None,
        *,
        first_byte_seconds: float | None = None,
    ) -> UpstreamResponse:
        """Send the request; returns when the answer's head is there.

        Args:
            method: of the request.
            path: with its query.
            headers: of the request.
            body: None for none.
            first_byte_seconds: the answer is given up if nothing of its body has come by then and
                another engine may be asked; None for no such time.

        Raises:
            UpstreamError: the engine cannot be reached, does not answer, hangs, or says that it
                does not serve now and another one may be asked.
        """
        loop = asyncio.get_running_loop()
        self._asked_at = loop.time()
        if first_byte_seconds is not None and not self._is_last:
            reason = f"nothing of its answer came within {first_byte_seconds:g} s"
            self._patience = loop.call_later(first_byte_seconds, self._lose_patience, reason)
        try:
            async with asyncio.timeout(None) as self._timer:
                response = await self.replica.upstream.send(method, path, headers, body)
        except TimeoutError:
            raise UpstreamError(self._given_up, answered=False) from None
        except UpstreamError as error:
            self.was_sent = error.connected
            raise
        finally:
            self._timer = None
        if response.status in NOT_SERVING:
            self._is_overload = response.status == OVERLOADED
            if not self._is_last:
                response.abort()
                raise UpstreamError(f"it answers {response.status}", answered=True)
            self._count_failure(f"it answers {response.status}")
            return response
        self._response = response
        self.replica.breaker.began_to_answer()
        self.replica.outstanding_tokens -= self._unread
        self._unread = 0.0
        return response

    def first_byte(self) -> None:
        """The first piece of a stream's body has come. O(1)."""
        self._be_patient()
        waited = asyncio.get_running_loop().time() - self._asked_at
        self.replica.metrics.first_byte.observe(waited)

    def failed(self, error: UpstreamError) -> None:
        """The engine failed, before its answer or in it; once only. O(1)."""
        if self._has_failed:
            return
        self._count_failure(str(error))
        if not error.connected:
            self.replica.unreachable(str(error))

    def ended(self, tail: bytes) -> None:
        """The answer is whole.

        Args:
            tail: its end, which may say how many tokens it took.
        """
        self._replicas.learn(tail)

    def give_up(self, reason: str, *, silent_seconds: float) -> bool:
        """See `Running.give_up`."""
        if self._timer is not None:
            if self._given_up:  # it is on its way out
                return False
            self._given_up = reason
            self._timer.reschedule(asyncio.get_running_loop().time())
            return True
        response = self._response
        return response is not None and response.give_up(reason, silent_seconds=silent_seconds)

    def _lose_patience(self, reason: str) -> None:
        if self.give_up(reason, silent_seconds=0.0):
            self.replica.metrics.given_up.inc()

    def _be_patient(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _count_failure(self, reason: str) -> None:
        self._has_failed = True
        if self._replicas.stopping:
            return  # given up by us
        self.replica.metrics.failures.inc()
        self.replica.last_error = reason
        if not self._is_overload:
            self.replica.breaker.failed()
