"""Which tokens are worth a row in a drafter's head: the most frequent in given text.

FR-Spec (arXiv 2502.14856) and VocabTrim (arXiv 2506.22694): most of what is said is said in few
tokens, and the head is a large part of a small drafter's work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Final

import numpy as np

from paceline.caches.text_source import TextSource
from paceline.errors import ConfigError

BATCH_TEXTS: Final = 512
"""Texts tokenised in one call."""


def most_frequent(
    source: TextSource,
    tokenizer: Any,
    *,
    max_tokens: int,
    always: Sequence[int],
    vocab_size: int,
) -> tuple[int, ...]:
    """The most frequent tokens of a text, most frequent first.

    Args:
        source: files and folders of text and JSON lines (`messages`, `text` or `content`).
        tokenizer: transformers tokenizer; texts are encoded without special tokens.
        max_tokens: most tokens; fewer where the text has no more different ones.
        always: tokens that are among them however often they occur, behind the frequent ones.
        vocab_size: tokens that the model knows.

    Raises:
        ConfigError: there is no text, or a token is beyond the vocabulary.
    """
    if len(always) >= max_tokens:
        raise ConfigError(
            f"--head-tokens is {max_tokens}; the {len(always)} special tokens alone need as many"
        )
    counts = _counts(source, tokenizer, vocab_size)
    for token_id in always:
        counts.pop(token_id, None)
    frequent = [token_id for token_id, _ in counts.most_common(max_tokens - len(always))]
    return (*frequent, *always)


def _counts(source: TextSource, tokenizer: Any, vocab_size: int) -> Counter[int]:
    totals = np.zeros(vocab_size, np.int64)
    for texts in _batches(_texts(source)):
        encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        token_ids = np.fromiter(chain.from_iterable(encoded), np.int64)
        counts = np.bincount(token_ids, minlength=vocab_size)
        if len(counts) > vocab_size:
            raise ConfigError(
                f"the tokenizer gives token {len(counts) - 1}, the target has {vocab_size}; give "
                "the target with its own tokenizer"
            )
        totals += counts
    if not totals.any():
        paths = ", ".join(map(str, source.paths))
        raise ConfigError(f"no text was found in {paths}; give text or JSON lines to count in")
    return Counter({int(i): int(totals[i]) for i in np.flatnonzero(totals)})


def _texts(source: TextSource) -> Iterator[str]:
    for file, _ in source.files():
        for text, _ in source.documents(file):
            yield text


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, BATCH_TEXTS)):
        yield batch
