"""Streams of the real embedded engine, recorded byte for byte with their times."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec

from paceline.errors import ConfigError
from paceline.models import PACKAGED_NAME
from paceline.processes import ChildProcess, answers, free_port

START_SECONDS: Final = 300.0
OWNER: Final = {"paceline_tenant": "eavesdropped", "paceline_workload": "leak"}


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """One stream as the engine sent it.

    Attributes:
        prompt: which prompt, from 0.
        repeat: which answer to it, from 0.
        speculated: whether the engine drafted.
        pieces: seconds since the request was sent, and what was read then.
    """

    prompt: int
    repeat: int
    speculated: bool
    pieces: tuple[tuple[float, bytes], ...]

    @property
    def body(self) -> bytes:
        """The whole stream."""
        return b"".join(data for _, data in self.pieces)

    @property
    def seconds(self) -> float:
        """From the request to the stream's end."""
        return self.pieces[-1][0]


class RecordSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How streams are recorded.

    Attributes:
        repeats: answers to each prompt, with drafts and without.
        output_tokens: most tokens of each.
        temperature: of the target; above 0, so that repeats differ.
        model: folder of the target, "" for the packaged one.
        draft_tokens: most tokens that the engine drafts a round.
        always_draft: also where it is not expected to be worth its time.
    """

    repeats: int
    output_tokens: int
    temperature: float
    model: str = ""
    draft_tokens: int = 8
    always_draft: bool = False


class Recordings(msgspec.Struct, frozen=True, kw_only=True):
    """What `record` made.

    Attributes:
        how: how it was made.
        streams: all streams, repeat by repeat.
    """

    how: RecordSettings
    streams: list[Recording]

    @property
    def num_prompts(self) -> int:
        """Different prompts."""
        return len({stream.prompt for stream in self.streams})

    @property
    def longest(self) -> int:
        """Number of the drafted stream that takes the most time."""
        numbers = [n for n, stream in enumerate(self.streams) if stream.speculated]
        return max(numbers, key=lambda number: self.streams[number].seconds)


def record(
    prompts: Sequence[str],
    settings: RecordSettings,
    log: Path,
    *,
    on_done: Callable[[int], None] = lambda _count: None,
) -> Recordings:
    """Have a real engine answer every prompt, with drafts and without, one at a time.

    First each is answered once for the engine to remember; what is recorded afterwards is not
    remembered, so that all repeats meet the same memory. Both answers of a repeat have one seed and
    so say the same.

    Args:
        prompts: what is asked.
        settings: how often and how long.
        log: file for the engine's output.
        on_done: called with the number of streams that were just finished.
    """
    with _engine(settings, log) as url:
        streams = asyncio.run(_record(url, prompts, settings, on_done))
    return Recordings(how=settings, streams=streams)


def write_recordings(recordings: Recordings, path: Path) -> None:
    """Write them to a file that `read_recordings` reads; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.msgpack.encode(recordings))


def read_recordings(path: Path) -> Recordings:
    """Read what `write_recordings` wrote.

    Raises:
        ConfigError: there is no such file, or it holds something else.
    """
    try:
        recordings = msgspec.msgpack.decode(path.read_bytes(), type=Recordings)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(
            f"{path} holds no recordings: {error}; have paceline bench leak make others under "
            "another name"
        ) from error
    if not recordings.streams or not all(stream.pieces for stream in recordings.streams):
        raise ConfigError(f"{path} holds no streams, or empty ones; name another file")
    return recordings


@contextmanager
def _engine(settings: RecordSettings, log: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "paceline.adapters.embedded", "--port", str(port)]
    command += ["--max-draft-tokens", str(settings.draft_tokens), "--model-name", PACKAGED_NAME]
    if settings.model:
        command += ["--model", settings.model]
    if settings.always_draft:
        command += ["--always-draft"]
    # nothing that another engine said is remembered
    environment = {n: v for n, v in os.environ.items() if not n.startswith("PACELINE_")}
    environment |= {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    url = f"http://127.0.0.1:{port}"
    with ChildProcess("the embedded engine", command, env=environment, log=log) as process:
        process.wait_until(lambda: answers(f"{url}/health"), timeout_seconds=START_SECONDS)
        yield url


async def _record(
    url: str,
    prompts: Sequence[str],
    settings: RecordSettings,
    on_done: Callable[[int], None],
) -> list[Recording]:
    streams = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:

        async def ask(number: int, repeat: int, **xargs: Any) -> tuple[tuple[float, bytes], ...]:
            body = _request(prompts[number], settings, seed=repeat * len(prompts) + number)
            body["vllm_xargs"] = OWNER | xargs
            pieces = await _read(session, f"{url}/v1/chat/completions", body)
            on_done(1)
            return pieces

        for number in range(len(prompts)):
            await ask(number, settings.repeats)  # a seed that no recording has
        for repeat in range(settings.repeats):
            for number in range(len(prompts)):
                for speculated in (True, False):
                    off = {} if speculated else {"paceline_speculation": "off"}
                    pieces = await ask(number, repeat, paceline_record=0, **off)
                    streams.append(
                        Recording(
                            prompt=number, repeat=repeat, speculated=speculated, pieces=pieces
                        )
                    )
    return streams


def _request(prompt: str, settings: RecordSettings, *, seed: int) -> dict[str, Any]:
    return {
        "model": PACKAGED_NAME,
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
        "max_tokens": settings.output_tokens,
        "temperature": settings.temperature,
        "seed": seed,
    }


async def _read(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any]
) -> tuple[tuple[float, bytes], ...]:
    pieces = []
    began = time.perf_counter()
    async with session.post(url, json=body) as response:
        if not response.ok:
            raise ConfigError(f"the engine answered {response.status}: {await response.text()}")
        while data := await response.content.readany():
            pieces.append((time.perf_counter() - began, data))
    return tuple(pieces)
