"""From tokens to text while they come: whole characters only, and nothing past a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

REPLACEMENT: Final = "\ufffd"
WINDOW_TOKENS: Final = 8
"""Tokens decoded again with each new one: the text of a token depends on few before it."""


class TextStream:
    """Turns a growing list of tokens into text.

    Args:
        tokenizer: a transformers tokenizer.
        stop: strings that end the reply; they are not part of it.

    Attributes:
        stopped: whether one has come.
        matched: which, "" for none.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = [s for s in stop if s]
        self._token_ids: list[int] = []
        self._decoded_until = 0
        self._held = ""
        self.stopped = False
        self.matched = ""

    def push(self, token_id: int) -> str:
        """Take one token; returns the text that may be shown now.

        Held back are the bytes of an unfinished character and what may be the beginning of a stop
        string. Once a stop string has come `stopped` is True and nothing more is shown.
        """
        self._token_ids.append(token_id)
        fresh = self._decode_new()
        return self._show(fresh) if fresh else ""

    def rest(self) -> str:
        """What is still held back at the end of the reply; empty if a stop string ended it."""
        if self.stopped:
            return ""
        fresh = self._decode(self._decoded_until, len(self._token_ids))
        shown = self._show(fresh)
        held, self._held = self._held, ""
        return shown if self.stopped else shown + held

    def _decode_new(self) -> str:
        """Text of the tokens not yet decoded, "" while they end inside a character."""
        fresh = self._decode(self._decoded_until, len(self._token_ids))
        if fresh.endswith(REPLACEMENT):
            return ""
        self._decoded_until = len(self._token_ids)
        return fresh

    def _decode(self, start: int, end: int) -> str:
        """Text of tokens [start, end) as it reads after the tokens before them."""
        window = max(0, start - WINDOW_TOKENS)
        before = self._text(self._token_ids[window:start])
        return self._text(self._token_ids[window:end])[len(before) :]

    def _text(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def _show(self, fresh: str) -> str:
        text = self._held + fresh
        ends = [(position, s) for s in self._stop if (position := text.find(s)) >= 0]
        if ends:
            end, self.matched = min(ends)
            self.stopped = True
            self._held = ""
            return text[:end]
        keep = max((_overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
