"""What `paceline drafter` is told, checked; its process gets it as JSON."""

from __future__ import annotations

from typing import Final

import msgspec

from paceline.errors import ConfigError

MIN_HEAD_TOKENS: Final = 16
"""Least tokens a trimmed head keeps: fusion looks at the eight likeliest."""


class InitSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`paceline drafter init`.

    Attributes:
        target: Hugging Face folder, GGUF file or a folder with one, or the packaged model's name.
        out: folder to make.
        layers: of the target to take, from 0, in order; None takes `num_layers`, spread evenly
            from the first to the last.
        num_layers: see `layers`.
        head_tokens: most tokens that a trimmed head keeps; None leaves the head whole.
        token_counts: files and folders of text whose most frequent tokens are kept.

    Raises:
        ConfigError: a value is out of range, or one of the head's two settings is missing.
    """

    target: str
    out: str
    layers: tuple[int, ...] | None = None
    num_layers: int = 2
    head_tokens: int | None = None
    token_counts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.num_layers < 1:
            raise ConfigError(f"--num-layers is {self.num_layers}; give 1 or more")
        if self.head_tokens is not None and self.head_tokens < MIN_HEAD_TOKENS:
            raise ConfigError(
                f"--head-tokens is {self.head_tokens}; give {MIN_HEAD_TOKENS} or more, or leave it "
                "out to keep the whole head"
            )
        if self.head_tokens is not None and not self.token_counts:
            raise ConfigError(
                "--head-tokens needs text to count tokens in: give --token-counts FILE with what "
                "your agents say (a tokenizer's own order is not by frequency)"
            )
        if self.token_counts and self.head_tokens is None:
            raise ConfigError("--token-counts needs --head-tokens N, how many tokens to keep")
