"""Keys and values of one sequence, for all layers of a model."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

FIRST_CAPACITY: Final = 64
GROWTH: Final = 1.5
BLOCK_TOKENS: Final = 16
"""Tokens that are read together: as many as numbers fit into a register of AVX-512."""
LEAST_MAPPED: Final = 1 << 17
"""Bytes from which on a buffer is a mapping of its own: as glibc does by itself at first."""


def in_blocks(num_tokens: int) -> int:
    """So many tokens and the rest of the last one's block."""
    return -(-num_tokens // BLOCK_TOKENS) * BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What a token's keys and values look like.

    Attributes:
        num_layers: layers that attend.
        num_heads: heads of keys and values (fewer than those of queries under grouped queries).
        head_dim: numbers a head.
        dtype: of each number.
    """

    num_layers: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype

    @classmethod
    def of(cls, model: Any) -> CacheShape:
        """The shape for a transformers causal LM."""
        config = model.config
        num_queries = config.num_attention_heads
        return cls(
            num_layers=config.num_hidden_layers,
            num_heads=getattr(config, "num_key_value_heads", None) or num_queries,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // num_queries,
            dtype=model.dtype,
        )

    @property
    def bytes_per_token(self) -> int:
        """Memory for each token."""
        return 2 * self.num_layers * self.num_heads * self.head_dim * int(self.dtype.itemsize)


class KeyValues:
    """A growing buffer of keys and values, (layers, 2, heads, capacity, head_dim).

    A forward pass writes its tokens past the end with `write`; they count once `advance` says so,
    and `keep` throws the rejected ones of a drafted tree away. What lies behind the end is nothing
    or what was thrown away.

    Args:
        shape: of a token.
    """

    def __init__(self, shape: CacheShape) -> None:
        self.shape = shape
        self._num_tokens = 0
        self._buffer = self._zeros(FIRST_CAPACITY)

    def __len__(self) -> int:
        """Tokens held."""
        return self._num_tokens

    @property
    def num_bytes(self) -> int:
        """Memory of the buffer, room to grow included."""
        return int(self._buffer.shape[3]) * self.shape.bytes_per_token

    @torch.inference_mode()
    def reserve(self, num_tokens: int) -> None:
        """Make room for `num_tokens` more. Amortised O(1) a token."""
        wanted = self._num_tokens + num_tokens
        capacity = self._buffer.shape[3]
        if wanted <= capacity:
            return
        grown = self._zeros(in_blocks(max(wanted, int(capacity * GROWTH))))
        grown[:, :, :, : self._num_tokens] = self._buffer[:, :, :, : self._num_tokens]
        self._buffer = grown

    @torch.inference_mode()
    def write(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put one layer's keys and values, (heads, new, head_dim), past the end.

        Room must be reserved. Returns all of the layer's and what lies behind them in the last
        block, (heads, `in_blocks(held + new)`, head_dim).
        """
        end = self._num_tokens + keys.shape[1]
        held = self._buffer[layer, :, :, : in_blocks(end)]
        held[0, :, self._num_tokens : end] = keys
        held[1, :, self._num_tokens : end] = values
        return held[0], held[1]

    def advance(self, num_tokens: int) -> None:
        """Count tokens that every layer has written."""
        self._num_tokens += num_tokens

    def crop(self, num_tokens: int) -> None:
        """Keep the first `num_tokens` tokens. O(1)."""
        self._num_tokens = min(self._num_tokens, num_tokens)

    @torch.inference_mode()
    def keep(self, num_tokens: int, path: Sequence[int]) -> None:
        """Keep the first `num_tokens` tokens and, moved up behind them, those `path` places later.

        Args:
            num_tokens: tokens before the drafted tree.
            path: ascending offsets behind them. O(len(path)).
        """
        if any(offset != i for i, offset in enumerate(path)):
            rows = torch.tensor(path) + num_tokens
            self._buffer[:, :, :, num_tokens : num_tokens + len(path)] = self._buffer[:, :, :, rows]
        self._num_tokens = num_tokens + len(path)

    @torch.inference_mode()
    def copy(self, num_tokens: int) -> KeyValues:
        """A sequence of its own that begins with the first `num_tokens` tokens. O(num_tokens)."""
        copied = KeyValues(self.shape)
        copied.reserve(num_tokens)
        copied._buffer[:, :, :, :num_tokens] = self._buffer[:, :, :, :num_tokens]
        copied._num_tokens = num_tokens
        return copied

    def _zeros(self, capacity: int) -> torch.Tensor:
        """Of nothing but zeros; memory that is not written yet is not held.

        Buffers live as long as requests are remembered, among others of other lengths. On glibc's
        heap more and more was free between them; a mapping goes back to the system by itself.
        """
        shape = self.shape
        sizes = (shape.num_layers, 2, shape.num_heads, capacity, shape.head_dim)
        num_bytes = capacity * shape.bytes_per_token
        if num_bytes < LEAST_MAPPED:
            return torch.zeros(sizes, dtype=shape.dtype)
        mapping = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return torch.frombuffer(mapping, dtype=shape.dtype).view(sizes)
