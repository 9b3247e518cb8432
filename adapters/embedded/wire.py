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
        prompt_ids: the prompt's tokens if token ids are to be told (vLLM's ``return_token_ids``,
            on the same wire as vLLM's: null stands where they would), None if not.
    """

    def __init__(
        self,
        style: Style,
        tokenizer: Any,
        *,
        with_logprobs: bool,
        prompt_ids: Sequence[int] | None = None,
    ) -> None:
        self.style = style
        self._tokenizer = tokenizer
        self._with_logprobs = with_logprobs
        self._prompt_ids = None if prompt_ids is None else list(prompt_ids)
        self._untold_ids: list[int] = []
        self._has_told_prompt = False
        self._num_characters = 0

    def say(self, token_ids: Sequence[int]) -> None:
        """Tell of further tokens with the next choice that is written."""
        self._untold_ids += token_ids

    def head(self) -> dict[str, Any]:
        """What the first chunk of a stream, or a whole answer, has beside its choices."""
        return {"prompt_token_ids": self._prompt_ids} if self.style is CHAT else {}

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
            **self._ids(),
        }

    def _ids(self) -> dict[str, Any]:
        told, self._untold_ids = self._untold_ids, []
        ids: dict[str, Any] = {"token_ids": None if self._prompt_ids is None else told}
        if self.style is COMPLETION:
            prompt_ids = None if self._has_told_prompt else self._prompt_ids
            ids = {"prompt_token_ids": prompt_ids} | ids
            self._has_told_prompt = True
        return ids

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
