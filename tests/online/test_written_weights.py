"""Drafters that are written in parts: what transformers reads of them is what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from drafter_folders import save_drafter
from paceline.drafter_folder import Distilled, HeldOut, read_record

NOTHING = HeldOut(num_tokens=1, agreement=0.0, accepted_length=0.0, chain_tokens=1)
TOLD = Distilled(num_steps=1, num_tokens=1, before=NOTHING, after=NOTHING)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_trained_drafter_is_read_as_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Same files as where it came from, its own weights in their type, a rest after each part."""
    import torch

    from paceline.models import load_model
    from paceline.online import written_weights
    from paceline.online.opened import open_drafter, save_opened

    source = save_drafter(tmp_path / "source")
    model, tokenizer = load_model(source)
    model.to(getattr(torch, dtype)).save_pretrained(source)
    opened = open_drafter(source, target="t")
    with torch.no_grad():
        for weight in opened.student.trained:
            weight.add_(0.25)
    expected = {name: it.clone() for name, it in opened.student.model.state_dict().items()}
    monkeypatch.setattr(written_weights, "PART_NUMBERS", 100)
    rests: list[int] = []
    save_opened(opened, TOLD, tmp_path / "trained", rest=lambda: rests.append(1))
    num_numbers = sum(it.numel() for it in opened.student.model.parameters())
    assert len(rests) > num_numbers // 200
    assert {*names(tmp_path / "trained")} == {*names(source)} | {"paceline.json"}
    again, same = load_model(tmp_path / "trained", keep_dtype=True)
    assert again.dtype == getattr(torch, dtype)
    found: dict[str, Any] = again.state_dict()
    assert found.keys() == expected.keys()
    for name, it in expected.items():
        assert torch.equal(found[name], it.to(again.dtype)), name
    assert same.get_vocab() == tokenizer.get_vocab()
    record = read_record(tmp_path / "trained")
    assert record is not None
    assert record.distilled == TOLD


def test_what_cannot_be_named_is_left_to_transformers(tmp_path: Path) -> None:
    """Weights that a model knows by other names are written by who knows these."""
    import torch
    from safetensors.torch import load_file, save_file

    from paceline.models import load_model
    from paceline.online.opened import open_drafter, save_opened

    source = save_drafter(tmp_path / "source")
    opened = open_drafter(source, target="t")
    file = source / "model.safetensors"
    save_file({f"other.{name}": it for name, it in load_file(file).items()}, file)
    save_opened(opened, TOLD, tmp_path / "trained")
    again, _ = load_model(tmp_path / "trained")
    expected = opened.student.model.state_dict()
    found = again.state_dict()
    assert all(torch.equal(found[name], it) for name, it in expected.items())
