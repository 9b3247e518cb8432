"""What the draft memory needs done now and then, away from the engine's steps."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from paceline.adapters.failures import FailureLog

logger = logging.getLogger("paceline.memory")

INTERVAL_SECONDS: Final = 30.0


class Housekeeping:
    """Calls a chore at intervals on a thread of its own, until closed.

    Args:
        chore: what to do; a failure is counted and tried again after the next interval.
        interval_seconds: time between two calls, the first one included.
    """

    def __init__(
        self, chore: Callable[[], object], *, interval_seconds: float = INTERVAL_SECONDS
    ) -> None:
        self.failures = FailureLog(logger, "keeping the draft memory's limits")
        self._chore = chore
        self._interval_seconds = interval_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="paceline-housekeeping", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Stop after the chore under way, if any."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_seconds):
            try:
                self._chore()
            except Exception as error:  # noqa: BLE001  counted: tried again at the next interval
                self.failures.record(error)
