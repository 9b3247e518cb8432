"""An idle gate that a test opens and closes."""

from __future__ import annotations

import threading


class Doors:
    """A gate that is closed at the given looks, and opens when somebody waits."""

    def __init__(self, *closed_at: int) -> None:
        self.looks = 0
        self.waits = 0
        self._closed_at = closed_at

    def is_open(self) -> bool:
        self.looks += 1
        return self.looks not in self._closed_at

    def wait_until_open(self, stop: threading.Event) -> bool:
        self.waits += 1
        return not stop.is_set()

    def busy_since(self) -> float | None:
        return None
