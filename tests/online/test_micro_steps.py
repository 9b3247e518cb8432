"""Training in small parts: the gate is asked between them, and what is computed stays the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from small_models import random_model


class Doors:
    """A gate that is closed at the given looks, and opens when somebody waits."""

    def __init__(self, closed_at: frozenset[int] = frozenset()) -> None:
        self.looks = 0
        self.waits = 0
        self._closed_at = closed_at

    def is_open(self) -> bool:
        self.looks += 1
        return self.looks not in self._closed_at

    def wait_until_open(self, stop: threading.Event) -> bool:
        self.waits += 1
        return not stop.is_set()


def ticking() -> Callable[[], float]:
    """A clock that is a second later at every look."""
    seconds: Iterator[int] = count()
    return lambda: float(next(seconds))


def gradients(model: Any, run: Callable[[], Any]) -> list[Any]:
    """Of one pass forward and backward."""
    import torch

    model.zero_grad()
    with torch.enable_grad():
        run()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def loss(model: Any) -> Any:
    import torch

    return model(input_ids=torch.arange(12)[None]).logits.square().mean()


def test_pauses_change_nothing_that_is_computed() -> None:
    """Gradients with a gate that closes all the time are those without one."""
    import torch

    from paceline.online.micro_steps import MicroSteps

    model = random_model("llama", num_hidden_layers=2)
    expected = gradients(model, lambda: loss(model).backward())
    doors = Doors(frozenset(range(0, 1000, 2)))
    steps = MicroSteps(model, doors, threading.Event(), clock=ticking())

    def interrupted() -> None:
        with steps.running():
            loss(model).backward()

    found = gradients(model, interrupted)
    assert len(found) == len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert steps.num_pauses == doors.waits > 10


def test_the_gate_is_asked_between_all_large_parts_both_ways() -> None:
    """Each projection is followed by a look, forward and backward."""
    import torch

    from paceline.online.micro_steps import LEAVES, MicroSteps

    model = random_model("llama", num_hidden_layers=2)
    num_parts = sum(isinstance(module, LEAVES) for module in model.modules())
    num_linear = sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    doors = Doors()
    steps = MicroSteps(model, doors, threading.Event(), clock=ticking())
    with torch.enable_grad(), steps.running():
        loss(model).backward()
    # forward: all; backward: all whose output takes part; and one look at the beginning
    assert doors.looks >= 1 + num_parts + num_linear
    assert steps.num_parts == doors.looks
    assert steps.take_longest() == 1.0
    assert steps.take_longest() == 0.0


def test_outside_of_a_step_nobody_waits() -> None:
    """Reading with the same model, as the promotion gate does, asks no gate."""
    from paceline.online.micro_steps import MicroSteps

    model = random_model("llama", num_hidden_layers=2)
    doors = Doors(frozenset(range(1000)))
    MicroSteps(model, doors, threading.Event())
    loss(model)
    assert doors.looks == 0


def test_a_stop_ends_a_step_in_its_middle() -> None:
    """Also while the gate is closed."""
    from paceline.online.micro_steps import MicroSteps, StoppedError

    model = random_model("llama", num_hidden_layers=2)
    stop = threading.Event()

    class Closing(Doors):
        def wait_until_open(self, stop: threading.Event) -> bool:
            stop.set()
            return super().wait_until_open(stop)

    steps = MicroSteps(model, Closing(frozenset({5})), stop)
    with pytest.raises(StoppedError), steps.running():
        loss(model)
    assert steps.num_parts == 4
    with pytest.raises(StoppedError), steps.running():
        pass
