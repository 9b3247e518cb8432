"""A model's passes in small parts: looks in between, and what is computed stays the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from idle_doors import Doors
from paceline.online.looks import Looks, StoppedError
from small_models import COMMON, WINDOW, random_model


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

    from paceline.online.micro_steps import micro_steps

    model = random_model("llama", num_hidden_layers=2)
    expected = gradients(model, lambda: loss(model).backward())
    doors = Doors(*range(0, 1000, 2))
    looks = Looks(doors, threading.Event(), clock=ticking())

    def interrupted() -> None:
        with looks.running("training"), micro_steps(model, looks.pause):
            loss(model).backward()

    found = gradients(model, interrupted)
    assert len(found) == len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert looks.num_pauses == doors.waits > 10


def test_the_gate_is_asked_between_all_large_parts_both_ways() -> None:
    """Each projection is followed by a look, forward and backward."""
    import torch

    from paceline.online.micro_steps import LEAVES, micro_steps

    model = random_model("llama", num_hidden_layers=2)
    num_parts = sum(isinstance(module, LEAVES) for module in model.modules())
    num_linear = sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    doors = Doors()
    looks = Looks(doors, threading.Event(), clock=ticking())
    with torch.enable_grad(), looks.running("training"), micro_steps(model, looks.pause):
        loss(model).backward()
    # forward: all; backward: all whose output takes part; and one look at the beginning
    assert doors.looks >= 1 + num_parts + num_linear
    assert looks.num_parts == doors.looks
    assert looks.take_longest() == 1.0
    assert looks.take_longest() == 0.0


def test_outside_of_work_nobody_waits() -> None:
    """A model is as it was afterwards, and what is no part of any work asks no gate."""
    from paceline.online.micro_steps import micro_steps

    model = random_model("llama", num_hidden_layers=2)
    doors = Doors(*range(1000))
    looks = Looks(doors, threading.Event())
    with micro_steps(model, looks.pause):
        loss(model)
    with looks.running("training"):
        num_looks = doors.looks
        loss(model)
        assert doors.looks == num_looks == 1


def test_long_projections_are_computed_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and outputs in pieces give what the whole gives but for rounding, with more looks."""
    import torch

    from paceline.online import micro_steps as module

    model = random_model("llama", num_hidden_layers=2)
    whole = gradients(model, lambda: loss(model).backward())
    expected = model(input_ids=torch.arange(12)[None]).logits
    num_looks: list[int] = []
    for rows, operations in ((1 << 20, 1 << 40), (5, 1 << 40), (5, 5 * 2 * 24 * 10)):
        monkeypatch.setattr(module, "PART_ROWS", rows)
        monkeypatch.setattr(module, "PART_OPERATIONS", operations)
        looked: list[None] = []

        def look(looked: list[None] = looked) -> None:
            looked.append(None)

        def in_pieces(look: Callable[[], None] = look) -> None:
            with module.micro_steps(model, look):
                loss(model).backward()

        for mine, its in zip(gradients(model, in_pieces), whole, strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)
        with torch.inference_mode(), module.micro_steps(model, look):
            found = model(input_ids=torch.arange(12)[None]).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        num_looks.append(len(looked))
    assert num_looks[0] * 2 < num_looks[1] < num_looks[2]


def test_attention_over_long_texts_is_computed_by_groups_of_heads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As many heads at a time as are no long part, with a look after each, both ways."""
    import torch

    from paceline.online import micro_steps as module

    model = random_model("llama", num_hidden_layers=2)
    num_heads, num_keys = model.config.num_attention_heads, model.config.num_key_value_heads
    a_head = 4 * (num_heads // num_keys) * 12 * 12 * model.config.head_dim
    whole = gradients(model, lambda: loss(model).backward())
    expected = model(input_ids=torch.arange(12)[None]).logits

    def num_looks(operations: int, *, by_heads: bool) -> int:
        looked: list[None] = []

        def look() -> None:
            looked.append(None)

        def in_parts() -> None:
            with module.micro_steps(model, look):
                loss(model).backward()

        monkeypatch.setattr(module, "PART_OPERATIONS", operations)
        monkeypatch.setattr(module, "WHOLE", "sdpa" if by_heads else "none")
        for mine, its in zip(gradients(model, in_parts), whole, strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)
        found = len(looked)
        with torch.inference_mode(), module.micro_steps(model, look):
            logits = model(input_ids=torch.arange(12)[None]).logits
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        assert model.config._attn_implementation == "sdpa"
        assert not hasattr(model.config, "paceline_look")
        return found

    assert num_keys > 1
    for at_once in range(1, num_keys + 1):
        operations = at_once * a_head
        more = num_looks(operations, by_heads=True) - num_looks(operations, by_heads=False)
        groups = -(-num_keys // at_once)
        assert more == (0 if groups == 1 else 2 * model.config.num_hidden_layers * groups)


def test_a_text_model_within_another_is_computed_by_heads_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its layers have a configuration of their own, and some see a window back only."""
    import torch
    import transformers

    from paceline.online import micro_steps as module

    text = transformers.Gemma3TextConfig(**COMMON, head_dim=8, sliding_window=WINDOW)
    sight = transformers.SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=28, patch_size=14,
    )  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=text, vision_config=sight, image_token_index=96, mm_tokens_per_image=4
    )
    torch.manual_seed(3)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    asked = torch.arange(2 * WINDOW)[None]
    monkeypatch.setattr(module, "PART_OPERATIONS", 1)
    looks: dict[str, int] = {}
    with torch.inference_mode():
        expected = model(input_ids=asked).logits
        for name in ("none", "sdpa"):
            looked: list[None] = []
            monkeypatch.setattr(module, "WHOLE", name)
            with module.micro_steps(model, lambda looked=looked: looked.append(None)):
                found = model(input_ids=asked).logits
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            looks[name] = len(looked)
    assert looks["sdpa"] - looks["none"] == text.num_hidden_layers * text.num_key_value_heads


def test_a_stop_ends_a_step_in_its_middle() -> None:
    """Also while the gate is closed."""
    from paceline.online.micro_steps import micro_steps

    model = random_model("llama", num_hidden_layers=2)
    stop = threading.Event()

    class Closing(Doors):
        def wait_until_open(self, stop: threading.Event) -> bool:
            stop.set()
            return super().wait_until_open(stop)

    looks = Looks(Closing(5), stop)
    with (
        pytest.raises(StoppedError),
        looks.running("training"),
        micro_steps(model, looks.pause),
    ):
        loss(model)
    assert looks.num_parts == 5  # the last one ends where the work does
    with pytest.raises(StoppedError), looks.running("training"):
        pass
