"""The target model with its key-value cache: feed tokens, get logits, take tokens back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from transformers import DynamicCache

from paceline.adapters.embedded.packaged import load

PREFILL_TOKENS: Final = 512
"""Prompt tokens a forward pass takes at a time; bounds the memory of a pass."""


class Target:
    """A loaded model that makes sequences.

    Args:
        model: a transformers causal LM.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_model_len: int = model.config.max_position_embeddings
        eos = model.generation_config.eos_token_id
        self.eos_token_ids = frozenset(eos if isinstance(eos, list) else [eos])

    @classmethod
    def load(cls, folder: Path | None) -> Target:
        """The model in `folder`, or the packaged one; see `packaged.load`."""
        return cls(*load(folder))

    def sequence(self) -> TargetSequence:
        """An empty sequence."""
        return TargetSequence(self.model)


class TargetSequence:
    """The key-value cache of one request."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache = DynamicCache(config=model.config)

    def __len__(self) -> int:
        """Tokens in the cache."""
        return int(self._cache.get_seq_length())

    def prefill(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Take the prompt (at least one token).

        Returns the logits after it, float32 (vocabulary,).
        """
        for start in range(0, len(token_ids), PREFILL_TOKENS):
            logits = self._forward(token_ids[start : start + PREFILL_TOKENS], keep=1)
        return logits[-1]

    def extend(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Take more tokens; returns the logits after each, float32 (len(token_ids), vocabulary)."""
        return self._forward(token_ids, keep=len(token_ids))

    def crop(self, num_tokens: int) -> None:
        """Keep the first `num_tokens` tokens: the rest was drafted and rejected."""
        if num_tokens < len(self):
            self._cache.crop(num_tokens - len(self))  # negative: that many from the end

    @torch.inference_mode()
    def _forward(self, token_ids: Sequence[int], *, keep: int) -> torch.Tensor:
        output = self._model(
            input_ids=torch.tensor([list(token_ids)]),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        logits: torch.Tensor = output.logits[0]
        return logits.float()
