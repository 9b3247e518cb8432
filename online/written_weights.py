"""A model's folder written in parts, its weights as safetensors. Needs torch and transformers."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from paceline.models import make_plain
from paceline.online.paused_file import PausedFile

WEIGHTS: Final = "model.safetensors"
WEIGHT_FILES: Final = ("*.safetensors", "*.bin", "*.gguf", "*.index.json")
PART_NUMBERS: Final = 1 << 20
"""That are converted and written at a time: some 2 ms."""
ALIGNMENT: Final = 8
DTYPES: Final = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def write_like(
    model: Any, source: Path, dtype: torch.dtype, folder: Path, rest: Callable[[], None]
) -> None:
    """Write a trained model as the folder that it came from was: files and names of weights.

    What a model shares between two names stands under the one that it had there. A folder of
    another kind (a GGUF file, weights that transformers renames) is left to transformers, which
    writes all at once.

    Args:
        model: transformers causal LM, anywhere; not changed.
        source: where it was loaded from.
        dtype: of the weights that are written.
        folder: exists, and is empty.
        rest: called between parts; does not raise.
    """
    state = model.state_dict()
    names = stored_names(source)
    if not names or not names <= state.keys() or dtype not in DTYPES:
        _write_by_transformers(model, source, dtype, folder)
        return
    for file in sorted(source.iterdir()):
        if file.is_file() and not any(file.match(pattern) for pattern in WEIGHT_FILES):
            shutil.copyfile(file, folder / file.name)
            rest()
    write_weights({name: state[name] for name in sorted(names)}, dtype, folder / WEIGHTS, rest)


def stored_names(folder: Path) -> set[str]:
    """Names of all tensors in a folder's safetensors files; none where it has no configuration."""
    from safetensors import safe_open

    names: set[str] = set()
    if not (folder / "config.json").is_file():
        return names
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            names.update(opened.keys())
    return names


def write_weights(
    tensors: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    file: Path,
    rest: Callable[[], None],
) -> None:
    """Write tensors in the safetensors format: its header's length, the header, their bytes.

    Args:
        tensors: by name, on any device; not changed.
        dtype: what they are converted to, a key of `DTYPES`.
        file: made, or replaced.
        rest: called between parts.

    Raises:
        OSError: it cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * dtype.itemsize
        header[name] = {
            "dtype": DTYPES[dtype],
            "shape": [*tensor.shape],
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with PausedFile(file, "wb", rest) as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            for part in row_parts(tensor):
                numbers = part.detach().to("cpu", dtype).contiguous()
                opened.write(numbers.view(-1).view(torch.uint8).numpy())
                rest()


def row_parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Rows of a tensor, about `PART_NUMBERS` numbers at a time; one of no dimension is one part."""
    if not tensor.dim():
        yield tensor[None]
        return
    a_row = max(1, math.prod(tensor.shape[1:]))
    yield from tensor.split(max(1, PART_NUMBERS // a_row))


def _write_by_transformers(model: Any, source: Path, dtype: torch.dtype, folder: Path) -> None:
    from transformers import AutoTokenizer

    from paceline.models import model_source

    written = model.to("cpu", dtype)
    make_plain(written)
    written.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**model_source(source)).save_pretrained(folder)
