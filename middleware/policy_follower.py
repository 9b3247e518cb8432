"""Following the policy file: what is written into it holds within a second, without a restart."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from paceline.errors import ConfigError
from paceline.middleware.config import read_policy
from paceline.policies.tenants import PolicyFile

logger = logging.getLogger("paceline.policy")

LOOK_SECONDS: Final = 0.2
"""Between two looks at the file."""


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What changes when a file is written or replaced; of no file, nothing."""

    modified: int = 0
    size: int = -1
    number: int = 0


class PolicyFollower:
    """Reads the file again when it has changed.

    A file that is wrong, or gone, changes nothing: the policy before it stays, the reason is logged
    once and counted. A file is read when two looks have found it the same, so that one that is
    being written is not taken for whole; replacing it by a rename is safest.

    Args:
        path: the file.
        policy: what is known of it.
        registry: of the proxy's metrics.

    Attributes:
        policy: the last one that was right.
    """

    def __init__(self, path: Path, policy: PolicyFile, registry: CollectorRegistry) -> None:
        self.policy = policy
        self._path = path
        self._known: _Stamp | None = None
        self._seen = _stamp(path)
        self._reloads = Counter(
            "paceline_proxy_policy_reloads",
            "Changes of the policy file that were taken over, and that were refused.",
            ["result"],
            registry=registry,
        )
        self._loaded_at = Gauge(
            "paceline_proxy_policy_loaded_timestamp_seconds",
            "When the policy that holds was read.",
            registry=registry,
        )
        for result in ("taken", "refused"):
            self._reloads.labels(result)
        self._loaded_at.set(time.time())

    async def follow(self, take: Callable[[PolicyFile], None]) -> None:
        """Look at the file until cancelled; each new policy goes to `take`.

        A thread looks: requests wait neither for the disk nor for the reading of a large file.
        """
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if await asyncio.to_thread(self.look):
                take(self.policy)

    def look(self) -> bool:
        """Look once; whether there is a new policy."""
        stamp, seen = _stamp(self._path), self._seen
        self._seen = stamp
        if stamp == self._known or stamp != seen:
            return False
        self._known = stamp
        try:
            policy = read_policy(self._path)
        except ConfigError as error:
            self._reloads.labels("refused").inc()
            logger.error("the policy stays as it was: %s", error)
            return False
        if _stamp(self._path) != stamp:
            self._known = None  # written while it was read: it comes again
            return False
        if policy.model_dump() == self.policy.model_dump():
            return False
        self.policy = policy
        self._reloads.labels("taken").inc()
        self._loaded_at.set(time.time())
        logger.info("took over the policy of %s: %d tenants", self._path, len(policy.tenants))
        return True


def _stamp(path: Path) -> _Stamp:
    try:
        found = path.stat()
    except OSError:
        return _Stamp()
    return _Stamp(found.st_mtime_ns, found.st_size, found.st_ino)
