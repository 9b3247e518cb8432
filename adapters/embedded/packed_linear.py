"""Linear layers whose weights are laid out for passes of a few tokens.

A drafted round multiplies a handful of rows with each weight. What torch calls for it on a CPU
(MKL's sgemm) reads the weight once for every three or four rows, so that five rows of a weight that
no core's cache holds cost twice as much as one. oneDNN, which torch carries too, reads a weight
that it has laid out beforehand once for all of them. Below `LEAST_ROWS` MKL is the faster one.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import torch

logger = logging.getLogger("paceline.engine")

LEAST_ROWS: Final = 4
"""Rows from which on the laid-out weight is used."""
LEAST_BYTES: Final = 2 << 20
"""Of a weight that is laid out: smaller ones stay in a core's cache, where MKL is as fast."""
TYPICAL_ROWS: Final = 8
"""Which oneDNN lays out for; it takes any number."""
MOST_OF_MEMORY: Final = 0.125
"""Part of the machine's memory, or of what its container may have, that the copies may take."""
CONTAINER: Final = Path("/sys/fs/cgroup/memory.max")
TOLERANCE: Final = 1e-4


class PackedLinear(torch.nn.Linear):
    """A linear layer with a second, laid-out copy of its weight; shares the weight it is made of.

    Args:
        linear: of float32, on the CPU. Its weight must not change any more.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        with torch.inference_mode():
            self._packed = torch.ops.mkldnn._reorder_linear_weight(
                linear.weight.detach(), TYPICAL_ROWS
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x @ weight.T + bias``; x float32, (..., in), result (..., out)."""
        if x.numel() < LEAST_ROWS * self.in_features:
            return torch.nn.functional.linear(x, self.weight, self.bias)
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._packed, self.bias, "none", [], ""
        )
        return found


def pack_linears(model: torch.nn.Module) -> int:
    """Have a model's large linear layers use laid-out weights too; returns how many do.

    None where that is of no use or cannot be: on a GPU, with other numbers than float32, where
    torch has no oneDNN, or where the copies would take more than an eighth of the memory that there
    is (which is logged). Results differ from before by rounding, as they do between numbers of
    rows.

    Args:
        model: read, and used for nothing but inference from now on.
    """
    found = [(parent, name, each) for parent in model.modules() for name, each in _large(parent)]
    if not found or not _is_offered():
        return 0
    num_bytes = sum(each.weight.nbytes for _, _, each in found)
    memory = memory_bytes()
    if num_bytes > MOST_OF_MEMORY * memory:
        logger.info(
            "rounds with drafts take longer than they could: weights laid out for them would take "
            "%.1f GB more, and an eighth of the memory is %.1f GB",
            num_bytes / 1e9,
            MOST_OF_MEMORY * memory / 1e9,
        )
        return 0
    for parent, name, each in found:
        setattr(parent, name, PackedLinear(each))
    return len(found)


def memory_bytes() -> int:
    """Of the machine, or less where the process's container may have less."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no container, or no limit ("max")
        return min(whole, int(CONTAINER.read_text()))
    return whole


def _large(parent: torch.nn.Module) -> list[tuple[str, torch.nn.Linear]]:
    return [
        (name, each)
        for name, each in parent.named_children()
        if type(each) is torch.nn.Linear
        and each.weight.device.type == "cpu"
        and each.weight.dtype is torch.float32
        and each.weight.nbytes >= LEAST_BYTES
    ]


def _is_offered() -> bool:
    """Whether this torch lays weights out, and computes with them what it should."""
    linear = torch.nn.Linear(64, 32)
    x = torch.linspace(-1, 1, LEAST_ROWS * 64).view(LEAST_ROWS, 64)
    try:
        with torch.inference_mode():
            difference: Any = (PackedLinear(linear)(x) - linear(x)).abs().max()
    except (AttributeError, RuntimeError) as error:
        logger.info("weights are not laid out for rounds with drafts: %s", error)
        return False
    return float(difference) < TOLERANCE
