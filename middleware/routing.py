"""Choosing an engine.

The same one for the same session while it is healthy, the next one otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Final

from paceline.middleware.config import UpstreamConfig
from paceline.middleware.upstream import Upstream, UpstreamError

HEALTH_SECONDS: Final = 5.0
HTTP_OK: Final = 200


@dataclass(slots=True, eq=False)
class Replica:
    """One engine and what is known of its health.

    Attributes:
        config: its entry in the configuration.
        upstream: the way to it.
        healthy: whether the last look at it, or the last request to it, went well; False until the
            first look.
        outstanding: requests it is working on for us.
    """

    config: UpstreamConfig
    upstream: Upstream
    healthy: bool = False
    outstanding: int = 0
    last_error: str = field(default="not looked at yet")

    @property
    def name(self) -> str:
        """Its name in the configuration."""
        return self.config.name

    def failed(self, reason: str) -> None:
        """A request to it failed: others are preferred until a look at it succeeds."""
        self.healthy = False
        self.last_error = reason

    async def look(self) -> None:
        """Ask for its health and remember the answer; none within five seconds is a bad one."""
        try:
            async with asyncio.timeout(HEALTH_SECONDS):
                response = await self.upstream.send("GET", self.config.health_path, {}, None)
        except TimeoutError:
            self.failed(f"its health did not answer within {HEALTH_SECONDS:g} s")
            return
        except UpstreamError as error:
            self.failed(str(error))
            return
        response.abort()
        self.healthy = response.status == HTTP_OK
        self.last_error = "" if self.healthy else f"its health answers {response.status}"


class ReplicaSet:
    """The engines behind the proxy.

    Args:
        replicas: at least one.
    """

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas = list(replicas)

    @property
    def any_healthy(self) -> bool:
        """Whether some engine can be expected to answer."""
        return any(replica.healthy for replica in self.replicas)

    def ranked(self, session: str) -> list[Replica]:
        """All engines in the order in which to try them. O(n log n).

        Healthy ones first; among them the session's own by rendezvous hashing (Thaler and
        Ravishankar, 1998: each session has its own stable order, and a lost engine moves only its
        own sessions), or the least busy one without a session.
        """
        if len(self.replicas) == 1:
            return list(self.replicas)
        if not session:
            return sorted(self.replicas, key=lambda r: (not r.healthy, r.outstanding))
        return sorted(self.replicas, key=lambda r: (not r.healthy, _weight(session, r.name)))

    async def watch(
        self,
        interval_seconds: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Look at every engine again and again; runs until cancelled."""
        while True:
            await asyncio.gather(*(replica.look() for replica in self.replicas))
            await sleep(interval_seconds)


def _weight(session: str, name: str) -> bytes:
    return blake2b(f"{session}\0{name}".encode(), digest_size=8).digest()
