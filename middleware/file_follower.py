"""Following a file: what is written into it holds within a second, without a restart."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge

from paceline.errors import ConfigError

logger = logging.getLogger("paceline.follower")

LOOK_SECONDS: Final = 0.2
"""Between two looks at the file."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What changes when a file is written or replaced; of no file, nothing."""

    modified: int = 0
    size: int = -1
    number: int = 0


class FileFollower(Generic[T]):
    """Reads a file again when it has changed.

    A file that is wrong, or gone, changes nothing: what it said before stays, the reason is logged
    once and counted. A file is read when two looks have found it the same, so that one that is
    being written is not taken for whole; replacing it by a rename is safest.

    Args:
        path: the file.
        value: what is known of it.
        read: reads it; raises `ConfigError` if it is wrong.
        subject: what it says, a word for logs and metrics.
        registry: of the proxy's metrics.

    Attributes:
        value: the last one that was right.
    """

    def __init__(
        self,
        path: Path,
        value: T,
        read: Callable[[Path], T],
        subject: str,
        registry: CollectorRegistry,
    ) -> None:
        self.value = value
        self._path = path
        self._read = read
        self._subject = subject
        self._known: _Stamp | None = None
        self._seen = _stamp(path)
        self._reloads = Counter(
            f"paceline_proxy_{subject}_reloads",
            f"Changes of the file of the {subject} that were taken over, and that were refused.",
            ["result"],
            registry=registry,
        )
        self._loaded_at = Gauge(
            f"paceline_proxy_{subject}_loaded_timestamp_seconds",
            f"When the {subject} that holds was read.",
            registry=registry,
        )
        for result in ("taken", "refused"):
            self._reloads.labels(result)
        self._loaded_at.set(time.time())

    async def follow(self, take: Callable[[T], None]) -> None:
        """Look at the file until cancelled; each new value goes to `take`.

        A thread looks: requests wait neither for the disk nor for the reading of a large file.
        """
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if await asyncio.to_thread(self.look):
                take(self.value)

    def look(self) -> bool:
        """Look once; whether there is a new value."""
        stamp, seen = _stamp(self._path), self._seen
        self._seen = stamp
        if stamp == self._known or stamp != seen:
            return False
        self._known = stamp
        try:
            with uncollected():
                value = self._read(self._path)
        except ConfigError as error:
            self._reloads.labels("refused").inc()
            logger.error("the %s stays as it was: %s", self._subject, error)
            return False
        if _stamp(self._path) != stamp:
            self._known = None  # written while it was read: it comes again
            return False
        if self.is_same(value, self.value):
            return False
        self.value = value
        self._reloads.labels("taken").inc()
        self._loaded_at.set(time.time())
        logger.info("took over the %s of %s: %s", self._subject, self._path, self.summary(value))
        return True

    def is_same(self, value: T, other: T) -> bool:
        """Whether two values say the same."""
        return value == other

    def summary(self, value: T) -> str:
        """A value in a few words, for the log."""
        return str(value)


def _stamp(path: Path) -> _Stamp:
    try:
        found = path.stat()
    except OSError:
        return _Stamp()
    return _Stamp(found.st_mtime_ns, found.st_size, found.st_ino)


@contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is collected in the body.

    Reading a long text makes many objects that live for a moment. They set off full collections,
    each of which keeps the interpreter from all threads while it looks at every object there is;
    and what was made goes without one, as nothing of it refers to itself.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
