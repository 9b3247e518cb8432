"""The requests that are placed: recorded agents, and a recorded service's arrivals."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Final

from paceline.benchmarks.traces import RecordedEpisode, read_recorded
from paceline.errors import ConfigError

BYTES_PER_TOKEN: Final = 4
CACHE_BLOCK_BYTES: Final = 256
"""Of an engine's cache: 64 tokens."""
ARRIVALS: Final = "arrivals"
HASHED_TOKENS: Final = 512
"""Of each block whose hash the recorded arrivals name."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One request of a session.

    Attributes:
        asked: bytes of the session's text that are its prompt.
        served: bytes that the engine holds afterwards, the reply included.
        num_said: tokens of the reply.
    """

    asked: int
    served: int
    num_said: int


@dataclass(frozen=True)
class Session:
    """A conversation; each turn's prompt is a beginning of `text`.

    Attributes:
        name: "" where requests do not tell which conversation they are of.
        scope: whose prefix cache it uses.
        starts_at: seconds.
        text: all of it.
        turns: in order; each begins when the one before it has been answered.
    """

    name: str
    scope: str
    starts_at: float
    text: bytes
    turns: Sequence[Turn]

    @cached_property
    def cache_blocks(self) -> list[int]:
        """Digests of the prefixes of `text`, at each block of an engine's cache."""
        digest, digests = hash(self.scope), []
        for begin in range(0, len(self.text) - CACHE_BLOCK_BYTES + 1, CACHE_BLOCK_BYTES):
            digest = hash((digest, hash(self.text[begin : begin + CACHE_BLOCK_BYTES])))
            digests.append(digest)
        return digests


def agent_sessions(
    folder: Path, sources: Sequence[str], *, episodes: int, per_second: float, seed: int
) -> list[Session]:
    """The first `episodes` of each source, in an order and at times drawn at random.

    Raises:
        ConfigError: there is no such source.
    """
    recorded = [e for s in sources for e in islice(read_recorded(folder, s), episodes)]
    rng = random.Random(seed)  # noqa: S311  load, no secret
    rng.shuffle(recorded)
    sessions, now = [], 0.0
    for episode in recorded:
        now += rng.expovariate(per_second)
        text, turns = _turns_of(episode)
        if turns:
            name = f"{episode.source}:{episode.episode_id}"
            sessions.append(Session(name, episode.source, now, text, turns))
    return sessions


def arrived_sessions(folder: Path, name: str, *, requests: int, speed: float) -> list[Session]:
    """Requests of a recorded service, each a session of its own that nothing names.

    Their text is made up from the hashes of their blocks, so that it agrees where theirs did.

    Args:
        folder: the traces'.
        name: of a file in its ``arrivals``, without ``.jsonl.gz``.
        requests: how many.
        speed: how much faster than recorded they come.

    Raises:
        ConfigError: there is no such file.
    """
    path = folder / ARRIVALS / f"{name}.jsonl.gz"
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; name a file with hashes of blocks in {ARRIVALS}")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [_arrived(line, speed) for line in islice(lines, requests)]


def _arrived(line: str, speed: float) -> Session:
    row = json.loads(line)
    words = HASHED_TOKENS * BYTES_PER_TOKEN // 8
    text = b"".join(int(block).to_bytes(8, "little") * words for block in row["hash_ids"])
    text = text[: int(row["input_length"]) * BYTES_PER_TOKEN]
    turn = Turn(len(text), len(text), int(row["output_length"]))
    return Session("", "", row["timestamp"] / 1e3 / speed, text, [turn])


def _turns_of(episode: RecordedEpisode) -> tuple[bytes, list[Turn]]:
    parts: list[bytes] = []
    turns: list[Turn] = []
    size = 0
    for message, part in _parts(episode):
        if message:
            said = len(part) // BYTES_PER_TOKEN
            turns.append(Turn(size, size + len(part), max(said, 1)))
        parts.append(part)
        size += len(part)
    return b"".join(parts), turns


def _parts(episode: RecordedEpisode) -> Iterator[tuple[bool, bytes]]:
    """Messages as they stand in a body, and whether each is a reply."""
    for message in episode.messages:
        shown = {"role": message.role, "content": message.body}
        yield message.measured, json.dumps(shown).encode() + b","
