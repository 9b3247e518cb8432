"""What has been said so far in one reply, and why it ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from paceline.adapters.embedded.requests import FinishReason, GenerationRequest
from paceline.adapters.embedded.target import Target
from paceline.adapters.embedded.text import TextStream


class Reply:
    """A prompt and the reply that grows behind it.

    Args:
        request: what is asked.
        target: whose tokens these are.

    Attributes:
        finish_reason: why it ended, None while it goes on.
    """

    def __init__(self, request: GenerationRequest, target: Target) -> None:
        self.finish_reason: FinishReason | None = None
        self._request = request
        self._num_prompt = self._num_tokens = len(request.prompt_ids)
        self._tokens = np.empty(self._num_prompt + request.max_tokens, np.int32)
        self._tokens[: self._num_prompt] = request.prompt_ids
        self._eos_token_ids = target.eos_token_ids
        self._text = TextStream(target.tokenizer, request.stop)

    @property
    def tokens(self) -> npt.NDArray[np.int32]:
        """Prompt and reply, int32 (tokens,); a view that later tokens do not change."""
        return self._tokens[: self._num_tokens]

    @property
    def num_said(self) -> int:
        """Tokens of the reply so far."""
        return self._num_tokens - self._num_prompt

    @property
    def room(self) -> int:
        """Tokens that may still be said."""
        return len(self._tokens) - self._num_tokens

    @property
    def matched_stop(self) -> str:
        """The stop string that ended it, "" for none."""
        return self._text.matched

    def take(self, token_ids: Sequence[int]) -> tuple[int, str]:
        """Append accepted tokens until the reply ends.

        Returns:
            (tokens taken, text to show now).
        """
        shown: list[str] = []
        before = self._num_tokens
        for token_id in token_ids:
            self._tokens[self._num_tokens] = token_id
            self._num_tokens += 1
            if token_id in self._eos_token_ids:
                self.finish_reason = "stop"
                break
            shown.append(self._text.push(token_id))
            if self._text.stopped:
                self.finish_reason = "stop"
                break
            if self.room == 0:
                self.finish_reason = "length"
                break
        if self.finish_reason is not None:
            shown.append(self._text.rest())
            if self._text.stopped:
                self.finish_reason = "stop"
        return self._num_tokens - before, "".join(shown)
