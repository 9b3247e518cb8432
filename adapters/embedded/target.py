"""The target model: feed it tokens of several sequences at once, get logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from paceline.adapters.embedded.key_values import CacheShape, KeyValues
from paceline.adapters.embedded.packed_attention import NAME, PackedCache, Span
from paceline.adapters.embedded.precision import FLOAT32, compute_in
from paceline.caches.tree import ROOT
from paceline.drafter_folder import kept_token_ids
from paceline.models import keep_head_rows, load_model

PREFILL_TOKENS: Final = 512
"""Prompt tokens a forward pass reads at a time: bounds its memory and how long replies wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one request adds to a forward pass.

    The first `len(token_ids) - len(parents)` tokens continue the sequence one after the other;
    those that follow are a drafted tree behind the last of them.

    Attributes:
        request_id: whose row it is.
        key_values: the sequence so far; grows by the row's tokens.
        token_ids: at least one token.
        parents: of each drafted token, its parent's index in the tree or `ROOT`; a parent comes
            before its children.
        num_logits: how many of the last tokens' logits are wanted, >= 0.
    """

    request_id: str
    key_values: KeyValues
    token_ids: Sequence[int]
    parents: Sequence[int] = ()
    num_logits: int = 1

    @property
    def num_chained(self) -> int:
        """Tokens before the drafted tree."""
        return len(self.token_ids) - len(self.parents)


class Target:
    """A loaded model.

    Args:
        model: a transformers causal LM whose attention uses transformers' interface for it.
        tokenizer: its tokenizer.

    Attributes:
        head_token_ids: of which token each row of a drafter's trimmed head is, int64 (rows,); None
            for a head that knows all.
    """

    head_token_ids: torch.Tensor | None = None

    def __init__(self, model: Any, tokenizer: Any) -> None:
        model.set_attn_implementation(NAME)
        self.model = model
        self.tokenizer = tokenizer
        self.shape = CacheShape.of(model)
        self.max_model_len: int = model.config.max_position_embeddings
        eos = model.generation_config.eos_token_id
        self.eos_token_ids = frozenset(eos if isinstance(eos, list) else [eos])

    @classmethod
    def load(cls, folder: Path | None, *, dtype: str = FLOAT32) -> Target:
        """The model in `folder`, or the packaged one; see `load_model` and `compute_in`."""
        model, tokenizer = load_model(folder)
        compute_in(model, dtype)
        return cls(model, tokenizer)

    @classmethod
    def load_drafter(cls, folder: Path, *, dtype: str = FLOAT32) -> Target:
        """The model in `folder` to draft with: only the tokens its `paceline.json` keeps.

        A target must not be loaded like this: what is not kept it could not say.

        Raises:
            ConfigError: there is no model, or `paceline.json` cannot be read.
        """
        model, tokenizer = load_model(folder)
        kept = kept_token_ids(folder, model.config.vocab_size)
        kept_ids = torch.tensor(kept) if kept else None
        if kept_ids is not None:
            keep_head_rows(model, kept_ids)
        compute_in(model, dtype)
        loaded = cls(model, tokenizer)
        loaded.head_token_ids = kept_ids
        return loaded

    @property
    def num_head_rows(self) -> int:
        """Tokens that it has logits for."""
        kept = self.head_token_ids
        return int(self.model.config.vocab_size) if kept is None else len(kept)

    @property
    def dtype(self) -> str:
        """What it computes in, as in `compute_in`."""
        return str(self.shape.dtype).removeprefix("torch.")

    def sequence(self) -> KeyValues:
        """An empty sequence."""
        return KeyValues(self.shape)

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """Read all rows in one forward pass.

        Afterwards each sequence holds its row's tokens, drafted ones included; after an error none.

        Args:
            rows: at least one, each of another sequence.

        Returns:
            For each row the logits after its last `num_logits` tokens, float32 (num_logits,
            `num_head_rows`): of a trimmed head see `in_vocabulary`.
        """
        spans = _spans(rows)
        wanted = [
            i for row, span in zip(rows, spans, strict=True)
            for i in range(span.end - row.num_logits, span.end)
        ]  # fmt: skip
        output = self.model(
            input_ids=torch.tensor([[token_id for row in rows for token_id in row.token_ids]]),
            position_ids=torch.cat([span.positions for span in spans])[None],
            past_key_values=(batch := PackedCache(spans)),
            paceline_batch=batch,
            use_cache=True,
            logits_to_keep=torch.tensor(wanted, dtype=torch.long),
        )
        for row in rows:
            row.key_values.advance(len(row.token_ids))
        logits: torch.Tensor = output.logits[0].float()
        return list(logits.split([row.num_logits for row in rows]))

    def in_vocabulary(self, logits: torch.Tensor) -> torch.Tensor:
        """What `forward` gives, for all tokens, float32 (num_logits, vocabulary).

        Those that a trimmed head does not know have minus infinity.
        """
        if self.head_token_ids is None:
            return logits
        known = logits
        logits = torch.full((len(known), self.model.config.vocab_size), -torch.inf)
        logits[:, self.head_token_ids] = known
        return logits


def _spans(rows: Sequence[Row]) -> list[Span]:
    spans = []
    start = 0
    for row in rows:
        end = start + len(row.token_ids)
        row.key_values.reserve(end - start)
        offsets, is_ancestor = tree_layout(row.num_chained, row.parents)
        positions = offsets + len(row.key_values)
        spans.append(Span(start, end, row.key_values, positions, is_ancestor))
        start = end
    return spans


def tree_layout(
    num_chained: int, parents: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Where the tokens of a row stand, and whom each of them attends to.

    Args:
        num_chained: tokens that come one after the other, at least one if there are `parents`.
        parents: of the tree behind the last of them.

    Returns:
        (offsets int64 (n,), ancestors bool (n, n) or None if the row is a chain), n tokens in all.
        O(n * depth).
    """
    num_tokens = num_chained + len(parents)
    if all(parent == i - 1 for i, parent in enumerate(parents)):
        return torch.arange(num_tokens), None
    offsets = list(range(num_chained))
    ancestors = torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril()
    for i, parent in enumerate(parents):
        at = num_chained + i
        above = num_chained + (-1 if parent == ROOT else parent)
        offsets.append(offsets[above] + 1)
        ancestors[at] = ancestors[above]
        ancestors[at, at] = True
    return torch.tensor(offsets), ancestors
