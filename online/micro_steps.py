"""Training in parts so small that others never wait for it. Needs torch.

A step of training is a second or more; between the parts of a model, forward and backward, it can
stand still for as long as somebody else wants the machine, and then go on where it was.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

import torch

logger = logging.getLogger("paceline.learner")

LEAVES: Final = (torch.nn.Linear, torch.nn.Embedding)
"""Parts that take most of a pass."""


class StoppedError(Exception):
    """The training was asked to end; the step it was in is dropped."""


class Gate(Protocol):
    """Says when there is time for training (`paceline.online.idle.IdleGate` is one)."""

    def is_open(self) -> bool:
        """Whether there is, now. Cheap."""

    def wait_until_open(self, stop: threading.Event) -> bool:
        """Wait for it; False if `stop` was set."""


class MicroSteps:
    """Looks at the gate between the parts of a model.

    Args:
        model: hooks are added to its modules; nothing it computes changes.
        gate: asked before every part.
        stop: ends the training at the next part.
        clock: monotonic seconds.

    Attributes:
        num_parts: that were computed.
        seconds: spent in them, without the waiting.
        longest_seconds: of one part, since `take_longest`.
        num_pauses: times the training stood still.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        gate: Gate,
        stop: threading.Event,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.num_parts = 0
        self.seconds = 0.0
        self.longest_seconds = 0.0
        self.num_pauses = 0
        self._gate = gate
        self._stop = stop
        self._clock = clock
        self._began_at: float | None = None
        for module in model.modules():
            if isinstance(module, LEAVES):
                module.register_forward_hook(self._after)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around what the hooks are to interrupt; elsewhere they do nothing.

        Raises:
            StoppedError: `stop` was set.
        """
        self._began_at = self._clock()
        try:
            self._wait()
            yield
            self._note()
        finally:
            self._began_at = None

    def pause(self) -> None:
        """A part has ended: wait while the gate is closed.

        Raises:
            StoppedError: `stop` was set.
        """
        if self._began_at is not None:
            self._note()
            self._wait()

    def take_longest(self) -> float:
        """`longest_seconds`, which begins anew."""
        longest, self.longest_seconds = self.longest_seconds, 0.0
        return longest

    def _note(self) -> None:
        assert self._began_at is not None
        seconds = self._clock() - self._began_at
        self.num_parts += 1
        self.seconds += seconds
        self.longest_seconds = max(self.longest_seconds, seconds)

    def _wait(self) -> None:
        if self._stop.is_set():
            raise StoppedError
        if not self._gate.is_open():
            self.num_pauses += 1
            if not self._gate.wait_until_open(self._stop):
                raise StoppedError
        self._began_at = self._clock()

    def _after(self, _module: Any, _inputs: Any, output: Any) -> None:
        self.pause()
        if isinstance(output, torch.Tensor) and output.requires_grad:
            output.register_hook(self._in_backward)

    def _in_backward(self, _gradient: torch.Tensor) -> None:
        self.pause()


def run_only_when_idle() -> str:
    """Have the kernel run this process only where a core is idle; says how, "" if it cannot be.

    Beside the gate, which looks a few times a second: within a part the kernel takes the core away
    at once.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, OSError):
        pass
    else:
        return "SCHED_IDLE"
    try:
        os.nice(19)
    except OSError:
        logger.warning("training competes with others: neither SCHED_IDLE nor nice is allowed")
        return ""
    return "nice 19"
