"""Counting what went wrong in drafting without letting it reach the target."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

LOG_INTERVAL_SECONDS = 60.0


class FailureLog:
    """Counts failures and logs at most one a minute, with its traceback.

    Args:
        logger: where to log.
        what: what failed, the subject of the logged sentence.
        clock: monotonic seconds.
    """

    def __init__(
        self, logger: logging.Logger, what: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.count = 0
        self._logger = logger
        self._what = what
        self._clock = clock
        self._last_logged = -LOG_INTERVAL_SECONDS

    def record(self, error: Exception) -> None:
        """Count `error`; log it if a minute has passed since the last one that was."""
        self.count += 1
        now = self._clock()
        if now - self._last_logged >= LOG_INTERVAL_SECONDS:
            self._last_logged = now
            self._logger.error(
                "%s failed (%d so far); the target answers without it",
                self._what,
                self.count,
                exc_info=error,
            )
