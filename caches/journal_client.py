"""Connecting to the journal's Redis: one way to open it, one way to wait for it."""

from __future__ import annotations

import random
from typing import Final

import redis
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from paceline.caches.keys import redact_url
from paceline.errors import JournalError

SOCKET_SECONDS: Final = 5.0
FIRST_WAIT_SECONDS: Final = 0.05
LONGEST_WAIT_SECONDS: Final = 2.0


def open_redis(url: str) -> redis.Redis:
    """A client of the Redis at `url` (redis://, rediss://, unix://); connects when first used.

    Raises:
        JournalError: the URL cannot be understood.
    """
    try:
        return redis.Redis.from_url(
            url,
            socket_timeout=SOCKET_SECONDS,
            socket_connect_timeout=SOCKET_SECONDS,
            # we retry ourselves, with the batch or the position in hand
            retry=None,
        )
    except (ValueError, TypeError) as error:
        raise JournalError(
            f"{redact_url(url)} is not a Redis URL ({error}); use redis://HOST:PORT, rediss:// "
            "for TLS or unix://PATH"
        ) from error


def check_access(client: redis.Redis, url: str) -> None:
    """Make sure the server, if it can be reached at all, lets us in.

    An unreachable server is no error: engines serve on and connect when it comes.

    Raises:
        JournalError: the server refuses user, password or commands.
    """
    try:
        client.ping()
    except (AuthenticationError, NoPermissionError) as error:
        raise JournalError(
            f"{redact_url(url)} refuses us ({error}); check user and password in the URL, and the "
            "user's permissions"
        ) from error
    except ResponseError as error:
        if "NOAUTH" in str(error) or "WRONGPASS" in str(error):
            raise JournalError(
                f"{redact_url(url)} wants a password; write it into the URL: redis://USER:PASSWORD@HOST:PORT"
            ) from error
    except (RedisError, OSError):
        return


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
