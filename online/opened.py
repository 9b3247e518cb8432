"""A drafter's folder in memory, to be trained. Needs torch and transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from paceline.caches.drafter_versions import GateResult
from paceline.drafter_folder import (
    Distilled,
    DrafterRecord,
    HeldOut,
    kept_token_ids,
    new_folder,
    read_record,
)
from paceline.errors import ConfigError
from paceline.models import load_model
from paceline.online.cutting import save_drafter
from paceline.online.student import Student


@dataclass(frozen=True, slots=True)
class OpenedDrafter:
    """A drafter that can learn.

    Attributes:
        student: it, in float32.
        tokenizer: transformers'.
        dtype: torch's, of its weights in files.
        record: what its `paceline.json` says.
    """

    student: Student
    tokenizer: Any
    dtype: Any
    record: DrafterRecord


def open_drafter(folder: Path, *, target: str, device: Any = "cpu") -> OpenedDrafter:
    """Load a drafter's folder.

    Args:
        folder: Hugging Face folder; it is not changed.
        target: name of its target, for the record of a drafter that Paceline did not make.
        device: torch's, where it is to be.

    Raises:
        ConfigError: it cannot be trained.
    """
    model, tokenizer = load_model(folder, keep_dtype=True)
    dtype, vocab_size = model.dtype, int(model.config.vocab_size)
    record = read_record(folder) or DrafterRecord(
        target=target, layers=(), vocab_size=vocab_size, kept_token_ids=()
    )
    student = Student(model.float().to(device), kept_token_ids(folder, vocab_size))
    return OpenedDrafter(student, tokenizer, dtype, record)


def save_opened(opened: OpenedDrafter, distilled: Distilled, folder: Path) -> None:
    """Write a trained drafter, whole or not at all; its weights in memory are rounded by it.

    Raises:
        ConfigError: the folder exists.
    """
    record = msgspec.structs.replace(opened.record, distilled=distilled)
    with new_folder(folder) as beside:
        model = opened.student.model.to("cpu", opened.dtype)
        save_drafter(model, opened.tokenizer, record, beside)


def distilled_of(
    gate: GateResult, *, num_steps: int, num_tokens: int, chain_tokens: int
) -> Distilled:
    """What a trained drafter's record says of its training.

    Args:
        gate: what was found on held-out sessions.
        num_steps: of the training.
        num_tokens: learned from.
        chain_tokens: longest chain that it was judged by.
    """
    before, after = (
        HeldOut(
            num_tokens=gate.num_rounds,
            agreement=agreement,
            accepted_length=accepted,
            chain_tokens=chain_tokens,
        )
        for agreement, accepted in (
            (gate.agreement_before, gate.before),
            (gate.agreement_after, gate.after),
        )
    )
    return Distilled(num_steps=num_steps, num_tokens=num_tokens, before=before, after=after)


def torch_device(name: str) -> torch.device:
    """The device of a setting; ``auto`` is a GPU where torch finds one, else the CPU.

    On a GPU matrices are multiplied in TF32 from then on: rounding is not what limits a drafter.

    Raises:
        ConfigError: torch does not know it, or it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"--device is {name!r}, which torch cannot use here ({reason}); give cpu, auto, or "
            "a device of this machine such as cuda:0"
        ) from error
