"""Laid-out weights: the same numbers, where they are of use, within a bound of memory."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from small_chats import write_target

torch = pytest.importorskip("torch")

WIDE, NARROW = 1100, 500
"""A weight of these is just above the size from which on it is laid out."""


def made(out_features: int = WIDE, in_features: int = NARROW, *, bias: bool = True) -> Any:
    torch.manual_seed(5)
    return torch.nn.Linear(in_features, out_features, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [(1,), (3,), (1, 4), (1, 5), (2, 4), (40,), (1, 300)])
def test_a_layer_gives_what_it_did(rows: tuple[int, ...], *, bias: bool) -> None:
    """Within rounding, for any number of rows; below four to the last bit."""
    from paceline.adapters.embedded.packed_linear import LEAST_ROWS, PackedLinear

    linear = made(bias=bias)
    packed = PackedLinear(linear)
    x = torch.randn(*rows, NARROW)
    with torch.inference_mode():
        found, expected = packed(x), linear(x)
    assert found.shape == expected.shape == (*rows, WIDE)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert (rows[-1] >= LEAST_ROWS or len(rows) > 1) or torch.equal(found, expected)


class Mixed(torch.nn.Module):
    """Layers of which two are of use: a large one, and a large head tied to an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.large = made()
        self.small = made(NARROW, 100)
        self.brief = made().to(torch.bfloat16)
        self.embedding = torch.nn.Embedding(WIDE, NARROW)
        self.inner = torch.nn.ModuleList([made(WIDE, NARROW, bias=False)])
        self.inner[0].weight = self.embedding.weight


def test_large_layers_of_float32_are_laid_out_and_keep_their_weights() -> None:
    """The names and tensors of a model stay, tied ones tied."""
    from paceline.adapters.embedded.packed_linear import PackedLinear, pack_linears

    model = Mixed()
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    assert pack_linears(model) == 2
    kinds = [type(each) for each in (model.large, model.small, model.brief, model.inner[0])]
    assert kinds == [PackedLinear, torch.nn.Linear, torch.nn.Linear, PackedLinear]
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before
    assert pack_linears(model) == 0


def test_copies_that_would_take_too_much_memory_are_not_made(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An eighth of what there is; it is said."""
    from paceline.adapters.embedded import packed_linear

    num_bytes = made().weight.nbytes
    monkeypatch.setattr(packed_linear, "memory_bytes", lambda: 8 * num_bytes - 8)
    model = torch.nn.Sequential(made())
    with caplog.at_level(logging.INFO, "paceline.engine"):
        assert packed_linear.pack_linears(model) == 0
    assert "an eighth of the memory" in caplog.text
    assert type(model[0]) is torch.nn.Linear
    monkeypatch.setattr(packed_linear, "memory_bytes", lambda: 8 * num_bytes)
    assert packed_linear.pack_linears(model) == 1


@pytest.mark.parametrize(("limit", "counts"), [("max\n", False), ("", False), ("1000000\n", True)])
def test_a_containers_limit_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, *, counts: bool
) -> None:
    """Where there is one."""
    from paceline.adapters.embedded import packed_linear

    monkeypatch.setattr(packed_linear, "CONTAINER", tmp_path / "memory.max")
    whole = packed_linear.memory_bytes()
    assert whole > 1_000_000
    (tmp_path / "memory.max").write_text(limit)
    assert packed_linear.memory_bytes() == (1_000_000 if counts else whole)


def test_a_torch_that_cannot_or_errs_is_not_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model stays as it is."""
    from paceline.adapters.embedded import packed_linear

    model = torch.nn.Sequential(made())
    with monkeypatch.context() as patched:
        patched.setattr(packed_linear, "TOLERANCE", -1.0)
        assert packed_linear.pack_linears(model) == 0
    with monkeypatch.context() as patched:
        patched.delattr(torch.ops.mkldnn, "_reorder_linear_weight", raising=False)
        patched.setattr(torch.ops, "mkldnn", object())
        assert packed_linear.pack_linears(model) == 0
    assert packed_linear.pack_linears(model) == 1


def test_a_model_says_the_same_with_and_without(tmp_path: Path) -> None:
    """Passes of one, five and forty tokens of a model whose head and layers are large enough."""
    from paceline.adapters.embedded.packed_linear import PackedLinear
    from paceline.adapters.embedded.target import Row, Target

    folder = write_target(tmp_path, hidden_size=512, intermediate_size=1100, num_hidden_layers=2)
    plain, packed = Target.load(folder, packs=False), Target.load(folder)
    assert not any(isinstance(each, PackedLinear) for each in plain.model.modules())
    assert sum(isinstance(each, PackedLinear) for each in packed.model.modules()) == 6
    sequences = plain.sequence(), packed.sequence()
    for num in (40, 1, 5):
        tokens = [(7 * i) % 90 for i in range(num)]
        one, other = (
            target.forward(
                [Row(request_id="r", key_values=held, token_ids=tokens, num_logits=num)]
            )[0]
            for target, held in zip((plain, packed), sequences, strict=True)
        )
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)
        assert torch.equal(one.argmax(-1), other.argmax(-1))
