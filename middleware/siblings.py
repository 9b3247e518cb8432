"""What the worker processes of one proxy ask each other, over Unix sockets in a folder of theirs.

One question a connection, its length and itself, and the answer likewise. Who may enter the folder
may ask: it belongs to the user that the proxy runs as, and to nobody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

WAIT_SECONDS: Final = 2.0
"""Longest wait for an answer: a worker that has none by then is busy, or hangs."""
LENGTH_BYTES: Final = 4
MAX_QUESTION_BYTES: Final = 64 * 1024


class AskMetrics(msgspec.Struct, frozen=True, tag="metrics"):
    """What do you count? Answered as `paceline.middleware.joined_metrics` has it."""


class AskUpstreams(msgspec.Struct, frozen=True, tag="upstreams"):
    """How do the engines do, as you see them?"""


class AskDrained(msgspec.Struct, frozen=True, tag="drained"):
    """Which engines has an operator drained? Answered with their names."""


class SetDrained(msgspec.Struct, frozen=True, tag="drain"):
    """An operator wants an engine to get no new requests, or to get them again.

    Attributes:
        name: of the engine.
        drained: which of both.
    """

    name: str
    drained: bool


class AskExplained(msgspec.Struct, frozen=True, tag="explained"):
    """Which engine answered a tenant's request that is to be explained? "" if you have none such.

    Attributes:
        request_id: the proxy's id of it.
        tenant: who asks.
    """

    request_id: str
    tenant: str


Question = AskMetrics | AskUpstreams | AskDrained | SetDrained | AskExplained
Answering = Callable[[Question], bytes]


def socket_path(folder: Path, index: int) -> Path:
    """Where a worker is asked."""
    return folder / f"worker-{index}.sock"


class Siblings:
    """The other workers of a proxy, as one of them sees them.

    Args:
        folder: of the sockets.
        index: this worker's number.
        num_workers: of the proxy; numbers are below it.
        wait_seconds: longest wait for an answer.
    """

    def __init__(
        self, folder: Path, index: int, num_workers: int, *, wait_seconds: float = WAIT_SECONDS
    ) -> None:
        self.index = index
        self._folder = folder
        self._others = [other for other in range(num_workers) if other != index]
        self._wait_seconds = wait_seconds
        self._server: asyncio.Server | None = None

    async def open(self, answering: Answering) -> None:
        """Answer the others from now on.

        Args:
            answering: answers a question, on the event loop.
        """
        path = socket_path(self._folder, self.index)
        path.unlink(missing_ok=True)  # of a worker that was killed

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError, asyncio.IncompleteReadError, msgspec.DecodeError):
                writer.write(_framed(answering(_questions.decode(await _read(reader)))))
                await writer.drain()
            writer.close()

        self._server = await asyncio.start_unix_server(serve, str(path))

    async def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.close()
            socket_path(self._folder, self.index).unlink(missing_ok=True)

    async def ask(self, question: Question) -> dict[int, bytes | None]:
        """What the others answer, by number: None of one that is there and does not answer.

        One that is not there, because it is being replaced, is left out. Waits `wait_seconds` at
        most.
        """
        answers = await asyncio.gather(*(self._ask(other, question) for other in self._others))
        return {
            other: answer
            for other, (is_there, answer) in zip(self._others, answers, strict=True)
            if is_there
        }

    async def _ask(self, other: int, question: Question) -> tuple[bool, bytes | None]:
        """Whether a worker is there, and its answer."""
        try:
            async with asyncio.timeout(self._wait_seconds):
                reader, writer = await asyncio.open_unix_connection(
                    str(socket_path(self._folder, other))
                )
                try:
                    writer.write(_framed(msgspec.json.encode(question)))
                    return True, await _read(reader, most=None)
                finally:
                    writer.close()
        except TimeoutError:
            return True, None
        except (OSError, asyncio.IncompleteReadError):
            return False, None


async def _read(reader: asyncio.StreamReader, most: int | None = MAX_QUESTION_BYTES) -> bytes:
    size = int.from_bytes(await reader.readexactly(LENGTH_BYTES))
    if most is not None and size > most:
        raise msgspec.DecodeError(f"a question of {size} bytes is longer than {most}")
    return await reader.readexactly(size)


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(LENGTH_BYTES) + data


_questions: Final[msgspec.json.Decoder[Question]] = msgspec.json.Decoder(Question)
