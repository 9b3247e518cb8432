"""A model's tokenizer for text on disk, without the model's framework."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from paceline.caches.records import tokenizer_digest
from paceline.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILE: Final = "tokenizer.json"


class TextTokenizer:
    """Tokens of plain text as the model would read it.

    What looks like a special token in the text (``<|im_start|>``) is taken as the characters it is
    written with: a file that mentions one is not a conversation.

    Args:
        source: a Hugging Face folder with a `tokenizer.json`, such a file, or a name on the Hub.

    Raises:
        ConfigError: `tokenizers` is not installed, or there is no tokenizer at `source`.

    Attributes:
        digest: `tokenizer_digest` of its vocabulary, as the journal's keys have it.
    """

    def __init__(self, source: str) -> None:
        self._tokenizer = _load(source)
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.digest = tokenizer_digest(self._tokenizer.get_vocab(with_added_tokens=True))

    def encode(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """int32, (num_tokens,) for each text, without begin or end tokens. Uses every core."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(it.ids, np.int32) for it in encoded]

    def decode(self, token_ids: npt.NDArray[np.int32]) -> str:
        """The text of some tokens, special ones included. O(tokens)."""
        return str(self._tokenizer.decode(token_ids.tolist(), skip_special_tokens=False))


def _load(source: str) -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ConfigError(
            "reading text needs tokenizers: pip install 'paceline[corpus]'"
        ) from error
    path = Path(source).expanduser()
    file = path / TOKENIZER_FILE if path.is_dir() else path
    try:
        if file.is_file():
            return Tokenizer.from_file(str(file))
        if path.exists() or path.is_absolute() or source.startswith((".", "~")):
            raise ConfigError(
                f"{source} has no {TOKENIZER_FILE}; give a model's folder with a fast tokenizer"
            )
        return Tokenizer.from_pretrained(source)
    except ConfigError:
        raise
    except Exception as error:  # the library raises bare ones for what it cannot parse or fetch
        raise ConfigError(
            f"no tokenizer can be loaded from {source}: {error}; give a folder with a "
            f"{TOKENIZER_FILE}, or a name on the Hugging Face Hub that can be reached from here"
        ) from error
