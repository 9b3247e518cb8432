"""Rendering messages as token ids, and keeping them on disk."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from paceline.benchmarks.replay.base import TokenIds
from paceline.errors import ConfigError

TURN_START: Final = "<|im_start|>"
TURN_END: Final = "<|im_end|>"
ROLES: Final = ("system", "user", "assistant", "tool")
BATCH_SIZE: Final = 500
CACHE_FORMAT: Final = 1


class PlainEncoder(Protocol):
    """The part of `tokenizers.Tokenizer` that rendering needs."""

    def encode_batch(self, input: list[str], *, add_special_tokens: bool) -> Sequence[Any]:
        """Encodings of texts; text that spells a special token is plain text."""

    def token_to_id(self, token: str) -> int | None:
        """Id of one token, None if the vocabulary lacks it."""

    def to_str(self) -> str:
        """The whole tokenizer as JSON."""


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around every message's body.

    Attributes:
        headers: role to the marker of a turn's start and the role's line.
        end: marker of a turn's end.
        tail: tokens between the end of one turn and the start of the next.
    """

    headers: dict[str, TokenIds]
    end: int
    tail: TokenIds


class Renderer:
    """Messages to token ids: header, body and tail are encoded apart.

    Args:
        encoder: the tokenizer; it must encode special tokens' text as plain text.
        turn_start: special token before a role.
        turn_end: special token after a body.

    Raises:
        ConfigError: the vocabulary lacks one of the two.
    """

    def __init__(
        self, encoder: PlainEncoder, *, turn_start: str = TURN_START, turn_end: str = TURN_END
    ) -> None:
        self._encoder = encoder
        start, end = (_marker(encoder, marker) for marker in (turn_start, turn_end))
        lines = self.encode([f"{role}\n" for role in ROLES])
        marker = np.array([start], np.int32)
        headers = {
            role: np.concatenate([marker, line]) for role, line in zip(ROLES, lines, strict=True)
        }
        self.frame = Frame(headers, end, self.encode(["\n"])[0])
        settings = f"{CACHE_FORMAT} {turn_start} {turn_end} {encoder.to_str()}"
        self.digest = hashlib.sha256(settings.encode()).hexdigest()

    def encode(self, texts: list[str]) -> list[TokenIds]:
        """Token ids of each text, int32 (n,), without any marker."""
        encodings = self._encoder.encode_batch(
            [_without_lone_surrogates(text) for text in texts], add_special_tokens=False
        )
        return [np.array(encoding.ids, np.int32) for encoding in encodings]


def load_encoder(tokenizer: str | None) -> PlainEncoder:
    """The tokenizer of a Hugging Face folder or name; None: of the packaged SmolLM2.

    Raises:
        ConfigError: there is none, or none that transformers can run natively.
    """
    from transformers import AutoTokenizer

    try:
        if tokenizer is None:
            from paceline.models import packaged_model_path

            path = packaged_model_path()
            loaded = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
        else:
            loaded = AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot load the tokenizer {tokenizer}: {error}") from error
    encoder = getattr(loaded, "backend_tokenizer", None)
    if encoder is None:
        raise ConfigError(f"{tokenizer} has no fast tokenizer; name one that has a tokenizer.json")
    if tokenizer is None:
        _restore_digits(encoder)
    encoder.encode_special_tokens = True  # their text in a body is what somebody wrote
    return encoder  # type: ignore[no-any-return]


def _restore_digits(encoder: Any) -> None:
    """Split digits singly, as SmolLM2's own tokenizer does: a GGUF file does not record it."""
    from tokenizers import pre_tokenizers

    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


@dataclass(frozen=True, slots=True)
class TokenCache:
    """Token ids of texts, kept in a folder.

    Attributes:
        folder: made when something is kept.
        renderer: encodes what is not there.
    """

    folder: Path
    renderer: Renderer

    def encode(self, name: str, texts: Sequence[str]) -> list[TokenIds]:
        """Token ids of `texts`, in order; read from the folder if they were encoded before.

        Args:
            name: what the file's name begins with.
            texts: what to encode; equal ones are encoded once.
        """
        digest = hashlib.sha256(self.renderer.digest.encode())
        for text in texts:
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        file = self.folder / f"{name}-{digest.hexdigest()[:20]}.npz"
        if file.is_file():
            with np.load(file) as kept:
                return np.split(kept["tokens"], kept["offsets"])
        encoded = self._encode_once(texts)
        self._keep(file, encoded)
        return encoded

    def _encode_once(self, texts: Sequence[str]) -> list[TokenIds]:
        known: dict[str, TokenIds] = {}
        for batch in _batches(dict.fromkeys(texts)):
            known.update(zip(batch, self.renderer.encode(batch), strict=True))
        return [known[text] for text in texts]

    def _keep(self, file: Path, encoded: list[TokenIds]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        tokens = np.concatenate([np.empty(0, np.int32), *encoded])
        offsets = np.cumsum([len(ids) for ids in encoded], dtype=np.int64)[:-1]
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False) as part:
            np.savez(part, tokens=tokens, offsets=offsets)
        os.replace(part.name, file)  # whole or not at all


def _batches(texts: Iterable[str]) -> Iterable[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, BATCH_SIZE)):
        yield batch


def _marker(encoder: PlainEncoder, marker: str) -> int:
    token = encoder.token_to_id(marker)
    if token is None:
        raise ConfigError(
            f"the tokenizer has no token {marker!r}; name its own with --turn-start and --turn-end"
        )
    return token


def _without_lone_surrogates(text: str) -> str:
    """`text` with each lone surrogate as U+FFFD: a tokenizer takes whole characters only."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
