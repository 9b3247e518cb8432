"""Recorded requests in the tokens a served model would read and write.

Rendered as the replay renders them (`paceline.benchmarks.replay.tokens`), with a context of any
length: a reply's tokens are the same when it is said and when a later request quotes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from paceline.benchmarks.replay.tokens import Renderer
from paceline.benchmarks.traces import RecordedEpisode
from paceline.errors import ConfigError

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

    Raises:
        ConfigError: a message has a role without a header.
    """
    frame = renderer.frame
    system: list[int] = []
    rest: list[int] = []
    turn = 0
    for index, message in enumerate(episode.messages):
        if max_requests is not None and turn >= max_requests:
            return
        header = frame.headers.get(message.role)
        if header is None:
            known = ", ".join(frame.headers)
            raise ConfigError(
                f"{episode.source} has a message of role {message.role!r}; known are {known}"
            )
        output = [*renderer.encode([message.body])[0].tolist(), frame.end]
        if message.measured:
            prompt = cut_prompt(system, [*rest, *header.tolist()], context_tokens)
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
        rendered = [*header.tolist(), *output, *frame.tail.tolist()]
        (system if is_leading_system else rest).extend(rendered)


def cut_prompt(system: Sequence[int], rest: Sequence[int], max_tokens: int) -> list[int]:
    """The leading system message and the newest tokens of the rest, `max_tokens` together.

    A system message of more than three quarters of them loses its end. The cut is made afresh for
    every request and ignores the borders of messages.
    """
    if len(system) + len(rest) <= max_tokens:
        return [*system, *rest]
    kept = system[: int(max_tokens * SYSTEM_SHARE)]
    return [*kept, *rest[max(0, len(rest) - (max_tokens - len(kept))) :]]
