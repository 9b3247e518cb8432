"""A version of a model drafter on its way into a running engine, from one thread to another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from paceline.adapters.drafter_tally import DrafterTally


@dataclass(slots=True, eq=False)
class Swap:
    """One version to draft with from some round on; written by the engine's thread once taken.

    Attributes:
        version: 0 for what the engine was started with.
        model: what `DrafterHost.load` gave; None for no model.
        before: the same of the version that it takes the place of, where that is at hand.
        is_done: whether the engine has taken it, well or not.
        error: why it could not; the engine drafts with what it had before.
        seconds: that the round waited for it.
    """

    version: int
    model: Any
    before: Any = None
    is_done: bool = False
    error: Exception | None = None
    seconds: float = 0.0


class DrafterHost(Protocol):
    """What an engine lets a `DrafterWatch` do; every method but `settle` from any thread."""

    @property
    def tally(self) -> DrafterTally:
        """How often the drafter that runs is right."""

    @property
    def num_rounds(self) -> int:
        """Rounds that the engine has drafted for so far, with the model or without."""

    def load(self, folder: Path) -> Any:
        """Read a drafter's folder and check it, on the caller's thread; nothing is changed.

        Raises:
            DamagedDrafterError: its files are not those of a drafter of this target.
        """

    def offer(self, swap: Swap) -> None:
        """Have the engine take it before its next round; replaces one that was not taken."""

    def withdraw(self, swap: Swap) -> bool:
        """Take it back; False if the engine has taken it."""

    def settle(self) -> None:
        """Take what is offered now: only while no round can begin on another thread."""

    def judge(self, *, is_judging: bool) -> None:
        """Whether a new version is judged, so that the model must not rest for long."""


class SwapSlot:
    """Room for one swap between the thread that loads and the engine's.

    Args:
        perform: puts it into place, on the engine's thread; what it raises leaves the drafter as
            it was.
        tally: is told of the version.
        on_swap: told of the version that drafts from now on, on the engine's thread.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        perform: Callable[[Swap], None],
        tally: DrafterTally,
        *,
        on_swap: Callable[[int], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._perform = perform
        self._tally = tally
        self._on_swap = on_swap
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: Swap | None = None

    def offer(self, swap: Swap) -> None:
        """Wait for the engine with it."""
        with self._lock:
            self._waiting = swap

    def withdraw(self, swap: Swap) -> bool:
        """Take it back; False if it is not waiting any more."""
        with self._lock:
            if self._waiting is not swap:
                return False
            self._waiting = None
            return True

    def take(self) -> None:
        """Perform the swap that waits, if there is one; called between rounds. Never raises."""
        if self._waiting is None:
            return
        with self._lock:
            swap, self._waiting = self._waiting, None
        if swap is None:
            return
        began_at = self._clock()
        try:
            self._perform(swap)
            self._tally.begin(swap.version)
            if self._on_swap is not None:
                self._on_swap(swap.version)
        except Exception as error:  # noqa: BLE001  handed to who offered it, who counts it
            swap.error = error
        swap.seconds = self._clock() - began_at
        swap.is_done = True
