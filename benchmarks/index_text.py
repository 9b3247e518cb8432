"""The text of `paceline bench index`: token ids, from a file or from recorded traces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from paceline.benchmarks.traces import read_episodes
from paceline.errors import ConfigError

Tokens = npt.NDArray[np.int32]
SEQUENCE_TOKENS: Final = 4096
"""Longer documents are added in sequences of this length, as requests would."""


@dataclass(frozen=True, slots=True)
class Text:
    """Token ids int32 (n,), with -1 between documents."""

    token_ids: Tokens

    def split(self, num_held: int) -> tuple[Text, Text]:
        """The first `num_held` tokens, and what none of them is part of: the last half of the rest.

        Raises:
            ConfigError: there are not twice as many.
        """
        rest = len(self.token_ids) - num_held
        if rest < num_held // 10 + 200_000:
            raise ConfigError(
                f"the text has {len(self.token_ids)} tokens: too few to hold {num_held} and leave "
                f"{num_held // 10 + 200_000} that are not held; give more text or smaller --sizes"
            )
        return Text(self.token_ids[:num_held]), Text(self.token_ids[num_held:])

    def sequences(self) -> Iterator[Tokens]:
        """Documents, cut to `SEQUENCE_TOKENS`, in order."""
        borders = np.flatnonzero(self.token_ids < 0).tolist()
        begin = 0
        for end in [*borders, len(self.token_ids)]:
            for first in range(begin, end, SEQUENCE_TOKENS):
                yield self.token_ids[first : min(end, first + SEQUENCE_TOKENS)]
            begin = end + 1

    def stretch(self, begin: int, length: int) -> Tokens:
        """`length` tokens from `begin` on, borders left out."""
        window = self.token_ids[begin : begin + 2 * length]
        return np.ascontiguousarray(window[window >= 0][:length])


def load_text(file: Path) -> Text:
    """Text of a .npy file of int32.

    Raises:
        ConfigError: it is no such file.
    """
    try:
        token_ids = np.load(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} is no .npy file of token ids: {error}") from error
    if token_ids.dtype != np.int32 or token_ids.ndim != 1:
        raise ConfigError(
            f"{file} holds {token_ids.dtype} of {token_ids.ndim} dimensions; give int32 of one"
        )
    return Text(token_ids)


def tokenize_traces(folder: Path, tokenizer_name: str, num_tokens: int) -> Text:
    """At most about `num_tokens` tokens of what agents read and wrote, one document an episode."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    rows: list[Tokens] = []
    count = 0
    sources = sorted(path.name.removesuffix(".jsonl.gz") for path in folder.glob("*.jsonl.gz"))
    for source in sources:
        for episode in read_episodes(folder, source):
            if not episode.contexts:
                continue
            said = "\n".join(message.content for message in episode.contexts[-1])
            ids = tokenizer.encode(said, add_special_tokens=False)
            rows += [np.array(ids, np.int32), np.array([-1], np.int32)]
            count += len(ids) + 1
            if count >= num_tokens:
                return Text(np.concatenate(rows))
    if not rows:
        raise ConfigError(f"{folder} holds no traces (*.jsonl.gz)")
    return Text(np.concatenate(rows))
