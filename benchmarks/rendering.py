"""Recorded messages as the tokens a served model would read and write.

One message is ``<|im_start|>`` + the role and a line end + the body + ``<|im_end|>`` + a line end;
role, body and tail are encoded apart, and special-token text inside a body is plain text. So a
reply's tokens are the same when it is said and when a later request quotes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from paceline.benchmarks.traces import RecordedEpisode, RecordedMessage
from paceline.errors import ConfigError

MESSAGE_START: Final = "<|im_start|>"
MESSAGE_END: Final = "<|im_end|>"
SYSTEM_SHARE: Final = 3 / 4
"""Most of the context that a leading system message keeps when a prompt is cut."""


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One recorded reply and the prompt it answered, in tokens.

    Attributes:
        source: name of the trace file.
        model: model that wrote the reply.
        episode_id: episode it belongs to.
        session_id: session the episode belongs to.
        turn: index among the measured replies of its episode.
        prompt_ids: what the target reads.
        output_ids: what it is to say, with the end-of-turn token; at least one token.
    """

    source: str
    model: str
    episode_id: str
    session_id: str
    turn: int
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]


class Renderer:
    """Turns recorded messages into tokens.

    Args:
        encode: plain text to token ids, special-token text included as plain text.
        start_id: token that opens a message.
        end_id: token that closes one, the last token of every reply.
    """

    def __init__(self, encode: Callable[[str], list[int]], *, start_id: int, end_id: int) -> None:
        self._encode = encode
        self._start_id = start_id
        self._end_id = end_id

    @classmethod
    def load(cls, folder: Path) -> Renderer:
        """A renderer with the tokenizer of a Hugging Face folder.

        Raises:
            ConfigError: there is no tokenizer, or it lacks the tokens that delimit messages.
        """
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise ConfigError(f"{path} does not exist; name a folder that has one (--tokenizer)")
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.encode_special_tokens = True  # their text in a body is text
        start_id, end_id = map(tokenizer.token_to_id, (MESSAGE_START, MESSAGE_END))
        if start_id is None or end_id is None:
            raise ConfigError(
                f"the tokenizer in {folder} has no {MESSAGE_START} or no {MESSAGE_END}; name one "
                "that has both"
            )

        def encode(text: str) -> list[int]:
            return list(tokenizer.encode(text, add_special_tokens=False).ids)

        return cls(encode, start_id=start_id, end_id=end_id)

    def header(self, role: str) -> list[int]:
        """What opens a message of `role`."""
        return [self._start_id, *self._encode(f"{role}\n")]

    def output(self, body: str) -> list[int]:
        """What the model says: the body and the end-of-turn token."""
        return [*self._encode(body), self._end_id]

    def message(self, message: RecordedMessage) -> list[int]:
        """A whole message as later requests hold it."""
        return [*self.header(message.role), *self.output(message.body), *self._encode("\n")]


def requests_of(
    episode: RecordedEpisode,
    renderer: Renderer,
    *,
    context_tokens: int,
    output_tokens: int = 0,
    max_requests: int | None = None,
) -> Iterator[RecordedRequest]:
    """The requests of an episode, one for each measured reply, in order.

    Args:
        episode: what was recorded.
        renderer: how it becomes tokens.
        context_tokens: longest prompt; see `cut_prompt`.
        output_tokens: longest reply, 0 for all of it.
        max_requests: only the first ones; None for all.
    """
    system: list[int] = []
    rest: list[int] = []
    turn = 0
    for index, message in enumerate(episode.messages):
        if max_requests is not None and turn >= max_requests:
            return
        if message.measured:
            prompt = cut_prompt(system, [*rest, *renderer.header("assistant")], context_tokens)
            output = renderer.output(message.body)
            yield RecordedRequest(
                source=episode.source,
                model=episode.model,
                episode_id=episode.episode_id,
                session_id=episode.session_id,
                turn=turn,
                prompt_ids=tuple(prompt),
                output_ids=tuple(output[:output_tokens] if output_tokens else output),
            )
            turn += 1
        is_leading_system = index == 0 and message.role == "system"
        (system if is_leading_system else rest).extend(renderer.message(message))


def cut_prompt(system: Sequence[int], rest: Sequence[int], max_tokens: int) -> list[int]:
    """The leading system message and the newest tokens of the rest, `max_tokens` together.

    A system message of more than three quarters of them loses its end. The cut is made afresh for
    every request and ignores the borders of messages.
    """
    if len(system) + len(rest) <= max_tokens:
        return [*system, *rest]
    kept = system[: int(max_tokens * SYSTEM_SHARE)]
    return [*kept, *rest[max(0, len(rest) - (max_tokens - len(kept))) :]]
