"""The packaged model (SmolLM2-135M-Instruct, Apache-2.0) written as a Hugging Face folder."""

from __future__ import annotations

import sys
from pathlib import Path

from paceline.models import load_model, make_plain, model_source


def export_packaged_tokenizer(folder: Path) -> Path:
    """Write the packaged model's tokenizer as a Hugging Face folder, without loading its weights.

    Args:
        folder: made if missing; files of the same names are overwritten.

    Returns:
        `folder`.
    """
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(**model_source(None)).save_pretrained(folder)
    return folder


def export_packaged_model(folder: Path) -> Path:
    """Write the packaged model as a Hugging Face folder (safetensors, float32) that vLLM can serve.

    Args:
        folder: made if missing; files of the same names are overwritten.

    Returns:
        `folder`.
    """
    model, tokenizer = load_model(None)
    make_plain(model)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    export_packaged_tokenizer(Path(sys.argv[1]))
