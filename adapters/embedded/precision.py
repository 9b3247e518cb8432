"""Models that compute in bfloat16 on a CPU, a row alike whatever is computed beside it.

Weights are laid out once for oneDNN, which otherwise does so in every pass. A pass of few rows is
filled up to as many as a tile of AMX holds: they take as long as one, and as oneDNN chooses its
blocks by the number of rows, none of a pass's numbers depends on how many tokens were drafted.
"""

from __future__ import annotations

from typing import Any, Final

import torch

from paceline.errors import ConfigError

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FLOAT32: Final = "float32"
TILE_ROWS: Final = 16
"""Rows of a tile of AMX (Intel 64 and IA-32 Architectures Optimization Reference Manual)."""


def has_bfloat16() -> bool:
    """Whether oneDNN computes in bfloat16 on this processor, and this torch lets it be asked to."""
    names = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    if not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def compute_in(model: Any, dtype: str) -> None:
    """Have a model that was loaded in float32 compute in another type, in place.

    Args:
        model: a transformers causal LM on the CPU.
        dtype: of `DTYPES`; with ``float32`` nothing is changed.

    Raises:
        ConfigError: it is none of them, or this processor cannot compute in it.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"the model's type is {dtype}; give one of {', '.join(DTYPES)}")
    if dtype == FLOAT32:
        return
    if not has_bfloat16():
        raise ConfigError(
            f"this processor or this torch does not compute in {dtype} (on x86 it takes AVX-512, "
            f"of torch a build with oneDNN); give {FLOAT32}"
        )
    model.to(DTYPES[dtype])
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(parent, name, TiledLinear(child))


class TiledLinear(torch.nn.Module):
    """A linear layer in bfloat16, of few rows as quick as of one and with the same result.

    Args:
        plain: what it computes; its weights are laid out anew and not kept.
    """

    def __init__(self, plain: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features = plain.in_features
        self.out_features = plain.out_features
        self._bias = None if plain.bias is None else plain.bias.detach()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(
            plain.weight.detach().contiguous(), TILE_ROWS
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Of rows (..., in_features), (..., out_features)."""
        rows = inputs.reshape(-1, self.in_features)
        num_rows = len(rows)
        if num_rows < TILE_ROWS:
            rows = torch.nn.functional.pad(rows, (0, 0, 0, TILE_ROWS - num_rows))
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self._weight, self._bias, "none", [], ""
        )
        return found[:num_rows].view(*inputs.shape[:-1], self.out_features)
