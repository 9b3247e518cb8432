"""Small models of random weights as Hugging Face folders, with the tokenizer of small traces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from small_models import random_model
from small_traces import save_tokenizer

NUM_TOKENS = 258
"""Of the tokenizer: a byte each, and two markers."""


def save_model(folder: Path, *, noise: float = 0.0, **changes: Any) -> Path:
    """A Llama; with noise a similar one, right often and wrong often enough."""
    model = random_model("llama", vocab_size=NUM_TOKENS, noise=noise, **changes)
    model.generation_config.eos_token_id = NUM_TOKENS - 1
    model.save_pretrained(folder)
    return save_tokenizer(folder)
