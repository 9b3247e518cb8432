"""How the two endpoints write a reply: OpenAI's chat and text completion objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from paceline.adapters.embedded.sampling import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Style:
    """What the objects of an endpoint are called."""

    id_prefix: str
    whole: str
    chunk: str


CHAT: Final = Style("chatcmpl", "chat.completion", "chat.completion.chunk")
COMPLETION: Final = Style("cmpl", "text_completion", "text_completion")


class ChoiceWriter:
    """Writes the one choice of one reply.

    Args:
        style: the endpoint's.
        tokenizer: spells tokens.
        with_logprobs: whether they were asked for.
    """

    def __init__(self, style: Style, tokenizer: Any, *, with_logprobs: bool) -> None:
        self.style = style
        self._tokenizer = tokenizer
        self._with_logprobs = with_logprobs
        self._num_characters = 0

    def whole(
        self, text: str, finish_reason: str | None, logprobs: Sequence[TokenLogprobs]
    ) -> dict[str, Any]:
        """The choice of a whole answer."""
        return self._choice(
            {"message": {"role": "assistant", "content": text, "refusal": None}}, text,
            finish_reason, logprobs,
        )  # fmt: skip

    def opening(self) -> dict[str, Any]:
        """The choice of a chat stream's first chunk."""
        delta = {"role": "assistant", "content": ""}
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}

    def delta(
        self, text: str, finish_reason: str | None, logprobs: Sequence[TokenLogprobs]
    ) -> dict[str, Any]:
        """The choice of a further chunk."""
        delta = {"delta": {"content": text} if text else {}}
        return self._choice(delta, text, finish_reason, logprobs)

    def _choice(
        self,
        chat: dict[str, Any],
        text: str,
        finish_reason: str | None,
        logprobs: Sequence[TokenLogprobs],
    ) -> dict[str, Any]:
        is_chat = self.style is CHAT
        write = self._chat_logprobs if is_chat else self._completion_logprobs
        return {
            "index": 0,
            **(chat if is_chat else {"text": text}),
            "logprobs": write(logprobs) if self._with_logprobs else None,
            "finish_reason": finish_reason,
        }

    def _chat_logprobs(self, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
        def entry(token_id: int, logprob: float) -> dict[str, Any]:
            spelled = self._spell(token_id)
            return {"token": spelled, "logprob": logprob, "bytes": list(spelled.encode())}

        content = [
            entry(said.token_id, said.logprob) | {"top_logprobs": [entry(*top) for top in said.top]}
            for said in logprobs
        ]
        return {"content": content, "refusal": None}

    def _completion_logprobs(self, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
        tokens = [self._spell(said.token_id) for said in logprobs]
        offsets = []
        for token in tokens:
            offsets.append(self._num_characters)
            self._num_characters += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [said.logprob for said in logprobs],
            "top_logprobs": [
                {self._spell(token_id): logprob for token_id, logprob in said.top}
                for said in logprobs
            ],
            "text_offset": offsets,
        }

    def _spell(self, token_id: int) -> str:
        return str(self._tokenizer.decode([token_id]))
