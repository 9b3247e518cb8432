"""Attention over a packed batch: sequences of different lengths side by side in one row.

Everything but attention treats tokens alike, so a batch is one row of tokens without padding. Each
sequence attends to its own keys and values, and within a drafted tree each token to its ancestors
alone (tree attention: Miao et al., SpecInfer, arXiv 2305.09781). Keys are read in whole blocks, of
which a mask hides the rest: so torch adds up what a token attends to in the same order, and finds
the same to the last bit, however many drafted tokens stand behind it.

transformers' attention interface hands every attending layer of a model to `attend`, so that any
architecture which uses that interface works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from paceline.adapters.embedded.key_values import KeyValues, in_blocks
from paceline.errors import EngineError

NAME: Final = "paceline_packed"
UNDERSTOOD: Final = frozenset(
    {"dropout", "scaling", "position_ids", "use_cache", "output_attentions"}
)
"""Arguments of an attention layer that change nothing here."""


@dataclass(frozen=True, slots=True)
class Span:
    """The tokens of one sequence within the batch.

    Attributes:
        start: index of its first token in the batch.
        end: index behind its last.
        key_values: what it attends to beside its own tokens.
        positions: int64, (end - start,). Position of each token in its text.
        is_ancestor: bool, (end - start, end - start). Whether the token of a row attends to that of
            a column; None where each attends to all before it.
    """

    start: int
    end: int
    key_values: KeyValues
    positions: torch.Tensor
    is_ancestor: torch.Tensor | None

    def mask(self, window: int | None) -> torch.Tensor:
        """Whom each token attends to, bool (tokens, `in_blocks(held + tokens)`).

        Args:
            window: most positions back that are attended to, None for all.
        """
        num_new, num_held = self.end - self.start, len(self.key_values)
        end = num_held + num_new
        own = self.is_ancestor
        if own is None:
            own = torch.ones(num_new, num_new, dtype=torch.bool).tril()
        mask = torch.zeros(num_new, in_blocks(end), dtype=torch.bool)
        mask[:, :num_held] = True
        mask[:, num_held:end] = own
        if window is not None and end > window:
            at = torch.cat([torch.arange(num_held), self.positions])
            mask[:, :end] &= self.positions[:, None] - at[None, :] < window
        return mask


class PackedCache(Cache):
    """A batch on its way through the model: where each layer leaves its keys and values.

    Args:
        spans: cover the batch, in order; their key-values have room.
    """

    def __init__(self, spans: Sequence[Span]) -> None:
        super().__init__(layers=[])
        self.spans = spans
        self._masks: dict[tuple[int | None, int], list[torch.Tensor]] = {}

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Nothing yet: `attend` knows the layer as well and keeps what it needs."""
        return key_states, value_states

    def masks(self, window: int | None, like: torch.Tensor, repeats: int) -> list[torch.Tensor]:
        """Each span's mask, made once for all layers of one kind.

        Args:
            window: as in `Span.mask`.
            like: of the scores' type.
            repeats: queries of each token.

        Returns:
            What is added to the scores, (repeats * tokens, keys): zero or minus infinity.
        """
        if (window, repeats) not in self._masks:
            self._masks[window, repeats] = [
                torch.zeros(mask.shape, dtype=like.dtype)
                .masked_fill_(~mask, -torch.inf)
                .repeat(repeats, 1)
                for mask in (span.mask(window) for span in self.spans)
            ]
        return self._masks[window, repeats]


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    paceline_batch: PackedCache,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """One layer's attention, as transformers' interface wants it.

    Args:
        module: the layer; `layer_idx` says which.
        query: (1, query heads, tokens, head_dim).
        key: (1, heads, tokens, head_dim), the batch's new tokens.
        value: like `key`.
        scaling: factor of the scores.
        sliding_window: positions a token sees, itself included; None for all.
        paceline_batch: whose tokens these are.
        others: what else a model hands its attention.

    Returns:
        (attended values (1, tokens, query heads, head_dim), None).

    Raises:
        EngineError: the model's attention does something that is not built here.
    """
    strange = sorted(k for k, v in others.items() if v is not None and k not in UNDERSTOOD)
    if strange:
        raise EngineError(
            f"the model's attention uses {', '.join(strange)}, which the embedded engine cannot "
            "compute; serve it with vLLM"
        )
    num_heads = key.shape[1]
    rows = query[0].unflatten(0, (num_heads, -1))  # heads, queries a head, tokens, head_dim
    attended = torch.empty_like(rows)
    masks = paceline_batch.masks(sliding_window, query, rows.shape[1])
    for span, mask in zip(paceline_batch.spans, masks, strict=True):
        keys, values = span.key_values.write(
            module.layer_idx, key[0, :, span.start : span.end], value[0, :, span.start : span.end]
        )
        # Queries that share a head's keys count as further tokens, so that no key is repeated.
        queries = rows[:, :, span.start : span.end]
        out = scaled_dot_product_attention(
            queries.flatten(1, 2)[None],
            keys[None],
            values[None],
            attn_mask=mask,
            scale=scaling,
        )
        attended[:, :, span.start : span.end] = out[0].view_as(queries)
    return attended.flatten(0, 1).transpose(0, 1)[None], None


AttentionInterface.register(NAME, attend)
