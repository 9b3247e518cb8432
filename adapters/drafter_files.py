"""What lies in a drafter's folder, checked before an engine drafts with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from paceline.caches.drafter_registry import folder_checksum
from paceline.errors import DamagedDrafterError

WEIGHTS: Final = "*.safetensors"
CONFIG: Final = "config.json"
INCIDENTAL: Final = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype"})
"""Of a configuration, what does not say how the model computes."""
TIED_HEAD: Final = "lm_head.weight"


def check_sum(folder: Path, checksum: str) -> None:
    """Check that a folder holds what was published. O(bytes).

    Raises:
        DamagedDrafterError: it does not.
        ConfigError: it cannot be read.
    """
    found = folder_checksum(folder)
    if found != checksum:
        raise DamagedDrafterError(
            f"{folder} has checksum {found}, published was {checksum}; publish the drafter again"
        )


def read_config(folder: Path) -> dict[str, Any]:
    """How the drafter in `folder` computes.

    Raises:
        DamagedDrafterError: nothing says so.
    """
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise DamagedDrafterError(f"{folder / CONFIG} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise DamagedDrafterError(f"{folder / CONFIG} is no configuration")
    return {name: value for name, value in config.items() if name not in INCIDENTAL}


def read_weights(folder: Path) -> dict[str, Any]:
    """All tensors of a folder by name, in memory of their own, on the CPU. O(bytes).

    Raises:
        DamagedDrafterError: a file cannot be read, or a number is not finite.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = sorted(folder.glob(WEIGHTS))
    if not files:
        raise DamagedDrafterError(f"{folder} has no {WEIGHTS}")
    weights: dict[str, Any] = {}
    for file in files:
        try:
            weights |= load_file(file)
        except (OSError, SafetensorError, ValueError) as error:
            raise DamagedDrafterError(f"{file} cannot be read: {error}") from error
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise DamagedDrafterError(f"{name} in {folder} has numbers that are not finite")
    return weights


def expected_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights that the configuration in `folder` asks for.

    A head that is tied to the embeddings is not among them.

    Raises:
        DamagedDrafterError: transformers makes nothing of it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(str(folder))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:
        raise DamagedDrafterError(f"{folder / CONFIG} is of no model: {error}") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if getattr(config, "tie_word_embeddings", False):
        shapes.pop(TIED_HEAD, None)
    return shapes


def check_weights(folder: Path, weights: dict[str, Any]) -> None:
    """Check that weights are all that the folder's configuration asks for, in its shapes.

    Raises:
        DamagedDrafterError: one is missing, or has another shape.
    """
    for name, shape in expected_shapes(folder).items():
        if name not in weights:
            raise DamagedDrafterError(f"{folder} has no weights {name}")
        if (found := tuple(weights[name].shape)) != shape:
            raise DamagedDrafterError(
                f"{name} in {folder} is {found}; its configuration says {shape}"
            )


def require_vocabulary(folder: Path, vocab_size: int) -> None:
    """Check that a drafter has as many tokens as the target.

    Raises:
        DamagedDrafterError: it has not.
    """
    found = read_config(folder).get("vocab_size")
    if found != vocab_size:
        raise DamagedDrafterError(
            f"the drafter in {folder} has {found} tokens and the target {vocab_size}; publish one "
            "that was made from this target"
        )
