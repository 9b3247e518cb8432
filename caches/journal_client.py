"""Connecting to the journal's Redis: one way to open it, one way to wait for it."""

from __future__ import annotations

import random
from typing import Any, Final, TypeAlias

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from paceline.caches.keys import redact_url
from paceline.errors import JournalError

SOCKET_SECONDS: Final = 5.0
FIRST_WAIT_SECONDS: Final = 0.05
LONGEST_WAIT_SECONDS: Final = 2.0
CLUSTER_SCHEMES: Final = {"redis+cluster": "redis", "rediss+cluster": "rediss"}

Client: TypeAlias = Any
"""`redis.Redis` or `redis.RedisCluster`.

Their stubs give every answer as a union with an awaitable; `JournalStore` gives answers the types
they have.
"""

UNREACHABLE: Final = (RedisError, RedisClusterException, OSError)
"""What a call raises when Redis, or the node that holds our keys, is away."""


class RedisAddress:
    """Where the journal's Redis is: opens clients of it.

    Args:
        url: redis://, rediss:// (TLS) or unix://; redis+cluster:// or rediss+cluster:// for a node
            of a Redis Cluster. A node of a cluster is also recognised by itself.
        socket_seconds: longest wait for a connection or an answer.

    Raises:
        JournalError: the URL cannot be understood.
    """

    def __init__(self, url: str, *, socket_seconds: float = SOCKET_SECONDS) -> None:
        self._socket_seconds = socket_seconds
        scheme, colon, rest = url.partition("://")
        self.shown = redact_url(url)
        self._is_cluster = scheme in CLUSTER_SCHEMES
        self._url = f"{CLUSTER_SCHEMES.get(scheme, scheme)}{colon}{rest}"
        self.open_node().close()

    def open_node(self) -> redis.Redis:
        """A client of the one server that the URL names; connects when first used."""
        try:
            return redis.Redis.from_url(
                self._url,
                socket_timeout=self._socket_seconds,
                socket_connect_timeout=self._socket_seconds,
                # we retry ourselves, with the batch or the position in hand
                retry=None,
            )
        except (ValueError, TypeError) as error:
            raise JournalError(
                f"{self.shown} is not a Redis URL ({error}); use redis://HOST:PORT, rediss:// "
                "for TLS, redis+cluster:// for a cluster or unix://PATH"
            ) from error

    def connect(self) -> Client:
        """A client that has reached the server, of the whole cluster where it belongs to one.

        Raises:
            RedisError, RedisClusterException, OSError: it cannot be reached.
        """
        node = self.open_node()
        try:
            node.ping()
            if not self._is_cluster and not _in_cluster(node):
                return node
        except BaseException:
            node.close()
            raise
        node.close()
        return redis.RedisCluster.from_url(
            self._url,
            socket_timeout=self._socket_seconds,
            socket_connect_timeout=self._socket_seconds,
            # a slot that moves is followed at once; a node that dies is waited for by ourselves
            retry=Retry(NoBackoff(), 3),
            # our keys share one slot: the other nodes may be away
            require_full_coverage=False,
        )

    async def connect_async(self, *, socket_seconds: float) -> Client:
        """A client for an event loop that has reached the server, or the cluster it belongs to.

        Args:
            socket_seconds: longest wait for a connection or an answer.

        Raises:
            RedisError, RedisClusterException, OSError: it cannot be reached.
        """
        options: dict[str, Any] = {
            "socket_timeout": socket_seconds,
            "socket_connect_timeout": socket_seconds,
        }
        never: Any = AsyncRetry(NoBackoff(), 0)
        node: Client = redis.asyncio.Redis.from_url(self._url, retry=never, **options)
        try:
            await node.ping()
            if not self._is_cluster and not await _in_cluster_async(node):
                return node
        except BaseException:
            await node.aclose()
            raise
        await node.aclose()
        return redis.asyncio.RedisCluster.from_url(
            self._url,
            retry=AsyncRetry(NoBackoff(), 3),
            require_full_coverage=False,
            **options,
        )

    def check_access(self) -> None:
        """Make sure the server, if it can be reached at all, lets us in.

        An unreachable server is no error: engines serve on and connect when it comes.

        Raises:
            JournalError: the server refuses user, password or commands.
        """
        with self.open_node() as client:
            try:
                client.ping()
            except (AuthenticationError, NoPermissionError) as error:
                raise JournalError(
                    f"{self.shown} refuses us ({error}); check user and password in the URL, and "
                    "the user's permissions"
                ) from error
            except ResponseError as error:
                if "NOAUTH" in str(error) or "WRONGPASS" in str(error):
                    raise JournalError(
                        f"{self.shown} wants a password; write it into the URL: "
                        "redis://USER:PASSWORD@HOST:PORT"
                    ) from error
            except (RedisError, OSError):
                return


def _in_cluster(node: Client) -> bool:
    try:
        answer = node.info("cluster")
    except ResponseError:  # a proxy or a user that may not ask: as one server
        return False
    return bool(answer.get("cluster_enabled"))


async def _in_cluster_async(node: Client) -> bool:
    try:
        answer = await node.info("cluster")
    except ResponseError:
        return False
    return bool(answer.get("cluster_enabled"))


class Backoff:
    """Waiting times between attempts.

    Doubling from 50 ms to 2 s, each shortened at random by up to a half.

    Args:
        rng: source of the jitter.
    """

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()  # noqa: S311  jitter, not a secret
        self._wait = FIRST_WAIT_SECONDS

    def next_seconds(self) -> float:
        """The next waiting time."""
        wait = self._wait
        self._wait = min(self._wait * 2, LONGEST_WAIT_SECONDS)
        return wait * self._rng.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Start over: an attempt succeeded."""
        self._wait = FIRST_WAIT_SECONDS
