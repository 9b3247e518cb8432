"""A drafter's folder in memory, to be trained. Needs torch and transformers."""

from __future__ import annotations

from collections.abc import Callable
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
    write_record,
)
from paceline.errors import ConfigError
from paceline.models import load_weights
from paceline.online.looks import never
from paceline.online.student import Student
from paceline.online.written_weights import row_parts, write_like


@dataclass(frozen=True, slots=True)
class OpenedDrafter:
    """A drafter that can learn.

    Attributes:
        student: it, in float32.
        folder: that it was loaded from, which has to stay until it is saved.
        dtype: torch's, of its weights in files.
        record: what its `paceline.json` says.
    """

    student: Student
    folder: Path
    dtype: Any
    record: DrafterRecord


def open_drafter(
    folder: Path, *, target: str, device: Any = "cpu", rest: Callable[[], None] = never
) -> OpenedDrafter:
    """Load a drafter's folder.

    Args:
        folder: Hugging Face folder; it is not changed.
        target: name of its target, for the record of a drafter that Paceline did not make.
        device: torch's, where it is to be.
        rest: called between parts of the loading; does not raise.

    Raises:
        ConfigError: it cannot be trained.
    """
    model = load_weights(folder, keep_dtype=True)
    rest()
    dtype, vocab_size = model.dtype, int(model.config.vocab_size)
    record = read_record(folder) or DrafterRecord(
        target=target, layers=(), vocab_size=vocab_size, kept_token_ids=()
    )
    _make_float(model, rest)
    student = Student(model.to(device), kept_token_ids(folder, vocab_size))
    rest()
    return OpenedDrafter(student, folder, dtype, record)


def _make_float(model: torch.nn.Module, rest: Callable[[], None]) -> None:
    """As `Module.float`, in parts."""
    for tensor in model.state_dict(keep_vars=True).values():
        if not tensor.is_floating_point() or tensor.dtype == torch.float32:
            continue
        converted = torch.empty_like(tensor, dtype=torch.float32)
        for mine, stored in zip(row_parts(converted), row_parts(tensor.data), strict=True):
            mine.copy_(stored)
            rest()
        tensor.data = converted
    model.float()  # what is none of the state


def save_opened(
    opened: OpenedDrafter,
    distilled: Distilled,
    folder: Path,
    *,
    rest: Callable[[], None] = never,
) -> None:
    """Write a trained drafter, whole or not at all.

    Args:
        opened: not changed.
        distilled: what its record says of the training.
        folder: made.
        rest: called between parts of the writing; does not raise.

    Raises:
        ConfigError: the folder exists.
    """
    record = msgspec.structs.replace(opened.record, distilled=distilled)
    with new_folder(folder) as beside:
        write_like(opened.student.model, opened.folder, opened.dtype, beside, rest)
        write_record(beside, record)


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
