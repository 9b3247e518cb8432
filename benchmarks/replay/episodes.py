"""Recorded episodes as streams of token ids, and the requests in them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from paceline.benchmarks.replay.base import TokenIds
from paceline.benchmarks.replay.tokens import Frame, TokenCache
from paceline.benchmarks.traces import RecordedEpisode, RecordedMessage, read_recorded
from paceline.errors import ConfigError
from paceline.policies.workload import fingerprint

AGENT_SOURCES: Final = (
    "mini-swe-agent",
    "tau-bench",
    "tau2-bench",
    "intercode-sql",
    "medagentbench",
    "swe-agent-llmlog",
)
MAX_EPISODES_PER_MODEL: Final = {"mini-swe-agent": 40}
MAX_PROMPT_TOKENS: Final = 8192
SYSTEM_SHARE: Final = 3 / 4


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """One recorded reply within its episode's stream.

    Attributes:
        begin: index of the body's first token; what lies before it is the full prompt.
        end: index past the reply's end-of-turn token.
    """

    begin: int
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """All messages of one recorded episode, rendered one after the other.

    Attributes:
        episode_id: id within the source.
        session_id: session that it belongs to.
        stream: int32, (num_tokens,).
        num_system: tokens of the leading system message, 0 without one.
        turns: recorded replies, in order.
        seen: whether an earlier session of the scope worked on the same task.
        reporting: whether it belongs to the half that figures are reported on.
        max_prompt_tokens: longest prompt.
    """

    episode_id: str
    session_id: str
    stream: TokenIds
    num_system: int
    turns: tuple[Turn, ...]
    seen: bool
    reporting: bool
    max_prompt_tokens: int = MAX_PROMPT_TOKENS

    @property
    def workload(self) -> str:
        """What the proxy would call it: a fingerprint of the system message, "" without one.

        Tools, which the proxy looks at too, are not rendered.
        """
        if not self.num_system:
            return ""
        return f"auto-{fingerprint((self.stream[: self.num_system].tobytes(),))}"

    def prompt(self, turn: Turn) -> TokenIds:
        """What the model was asked: everything before the reply, cut to its longest length.

        The leading system message stays (at most three quarters of it), then come the newest
        tokens.
        """
        longest = self.max_prompt_tokens
        if turn.begin <= longest:
            return self.stream[: turn.begin]
        kept = min(self.num_system, int(longest * SYSTEM_SHARE))
        newest = max(turn.begin - (longest - kept), self.num_system)
        return np.concatenate([self.stream[:kept], self.stream[newest : turn.begin]])

    def output(self, turn: Turn) -> TokenIds:
        """What the model said, its end-of-turn token included."""
        return self.stream[turn.begin : turn.end]


@dataclass(frozen=True, slots=True, eq=False)
class Scope:
    """One model's episodes of one source: what may share a history.

    Attributes:
        source: name of the trace file.
        model: who said it.
        episodes: in file order.
    """

    source: str
    model: str
    episodes: tuple[Episode, ...]

    @property
    def name(self) -> str:
        """What drafters know the scope by."""
        return f"{self.source}/{self.model}"

    @property
    def num_output_tokens(self) -> int:
        """Tokens of all recorded replies."""
        return sum(turn.end - turn.begin for e in self.episodes for turn in e.turns)

    @property
    def digest(self) -> str:
        """Hash of everything that a replay of this scope depends on. O(num_tokens)."""
        state = hashlib.sha256(self.name.encode())
        for e in self.episodes:
            turns = [(turn.begin, turn.end) for turn in e.turns]
            facts = (e.episode_id, e.session_id, e.num_system, turns, e.seen, e.reporting)
            state.update(repr(facts).encode() + e.stream.tobytes())
            if e.max_prompt_tokens != MAX_PROMPT_TOKENS:
                state.update(f"{e.max_prompt_tokens}".encode())
        return state.hexdigest()


def bounded(scope: Scope, *, num_turns: int | None, max_prompt_tokens: int | None) -> Scope:
    """The scope with the first replies of each episode only, and shorter prompts; None: all."""
    longest = MAX_PROMPT_TOKENS if max_prompt_tokens is None else max_prompt_tokens
    episodes = (
        replace(episode, turns=episode.turns[:num_turns], max_prompt_tokens=longest)
        for episode in scope.episodes
    )
    return replace(scope, episodes=tuple(episodes))


def load_scopes(
    folder: Path,
    source: str,
    tokens: TokenCache,
    *,
    num_episodes: int | None = None,
) -> list[Scope]:
    """The scopes of one source in order of first appearance.

    Args:
        folder: where the trace file is.
        source: its name without ``.jsonl.gz``.
        tokens: encodes messages.
        num_episodes: most episodes of each model, the first ones; None: as many as the protocol
            takes.

    Raises:
        ConfigError: there is no such file, or a message has a role without a header.
    """
    limit = MAX_EPISODES_PER_MODEL.get(source)
    recorded = list(_first_of_each_model(read_recorded(folder, source), limit))
    messages = [message for episode in recorded for message in episode.messages]
    # the whole source even if fewer episodes are wanted, so that any number finds the same file
    bodies = iter(tokens.encode(source, [message.body for message in messages]))
    frame = tokens.renderer.frame
    rendered = [
        (e, [(m, _render(frame, source, m, next(bodies))) for m in e.messages]) for e in recorded
    ]
    models = dict.fromkeys(e.model for e in recorded)
    return [
        Scope(source, model, tuple(_episodes(mine, frame)))
        for model in models
        if (mine := [row for row in rendered if row[0].model == model][:num_episodes])
    ]


def _first_of_each_model(
    episodes: Iterable[RecordedEpisode], limit: int | None
) -> Iterator[RecordedEpisode]:
    num_taken: dict[str, int] = {}
    for episode in episodes:
        num_taken[episode.model] = num_taken.get(episode.model, 0) + 1
        if limit is None or num_taken[episode.model] <= limit:
            yield episode


def _render(frame: Frame, source: str, message: RecordedMessage, body: TokenIds) -> TokenIds:
    header = frame.headers.get(message.role)
    if header is None:
        known = ", ".join(frame.headers)
        raise ConfigError(f"{source} has a message of role {message.role!r}; known are {known}")
    return np.concatenate([header, body, np.array([frame.end], np.int32), frame.tail])


def _episodes(
    rows: list[tuple[RecordedEpisode, list[tuple[RecordedMessage, TokenIds]]]], frame: Frame
) -> Iterator[Episode]:
    num_header = len(frame.headers["assistant"])
    sessions_of_task: dict[str, set[str]] = {}
    for recorded, rendered in rows:
        turns = []
        length = 0
        for message, token_ids in rendered:
            if message.measured:
                end = length + len(token_ids) - len(frame.tail)
                turns.append(Turn(length + num_header, end))
            length += len(token_ids)
        led = bool(rendered) and rendered[0][0].role == "system"
        sessions = sessions_of_task.setdefault(recorded.task_group, set())
        yield Episode(
            episode_id=recorded.episode_id,
            session_id=recorded.session_id,
            stream=np.concatenate([np.empty(0, np.int32), *(ids for _, ids in rendered)]),
            num_system=len(rendered[0][1]) if led else 0,
            turns=tuple(turns),
            seen=bool(sessions - {recorded.session_id}),
            reporting=is_reporting(recorded.episode_id),
        )
        sessions.add(recorded.session_id)


def is_reporting(episode_id: str) -> bool:
    """Which half an episode belongs to: by its id alone, so that it never changes sides."""
    return bool(hashlib.sha256(episode_id.encode()).digest()[0] & 1)
