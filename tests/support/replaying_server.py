"""A server that sends recorded answers, byte for byte, in the pieces in which it is told to."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

from recorded_streams import Asked, Recording

Cut = Callable[[list[bytes]], list[bytes]]
Library = Mapping[tuple[str, Asked], Recording]
"""Recordings by what a request names in its field ``user``, and how it asks."""


def library_of(recordings: Iterable[Recording]) -> Library:
    return {(name_of(each), each.asked): each for each in recordings}


def name_of(recording: Recording) -> str:
    """What a request names in ``user`` to be answered by it."""
    return f"{recording.kind}-{recording.parser}"


def as_recorded(chunks: list[bytes]) -> list[bytes]:
    """In the chunks in which vLLM sent it."""
    return chunks


def across(chunks: list[bytes]) -> list[bytes]:
    """Cut inside of chunks, at places that depend on their bytes alone; never where they end."""
    body = b"".join(chunks)
    chance = random.Random(len(body))  # noqa: S311  places to cut at
    ends = {sum(map(len, chunks[: n + 1])) for n in range(len(chunks))}
    # each end is missed by a byte or so: within the empty line, and within the next event's start
    wanted = {end + chance.choice((-1, 1, 9)) for end in ends} - ends
    return _cut(body, wanted | {chance.randrange(len(body)) for _ in chunks} - ends)


def in_one(chunks: list[bytes]) -> list[bytes]:
    """All at once."""
    return [b"".join(chunks)]


def _cut(body: bytes, places: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(place for place in places if 0 < place < len(body)), len(body)]
    return [body[a:b] for a, b in itertools.pairwise(edges)]


class ReplayingServer:
    """Answers each request with the recording of what was asked; 404 if there is none.

    Attributes:
        cut: how a stream's chunks become those that are sent.
        port: where, once started.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self.cut: Cut = as_recorded
        self.port = 0
        self._stopping = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator[ReplayingServer]:
        """Serve from a thread of its own."""
        loop = asyncio.new_event_loop()
        started = threading.Event()
        thread = threading.Thread(target=loop.run_until_complete, args=(self._serve(started),))
        thread.start()
        assert started.wait(10)
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(self._stopping.set)
            thread.join(10)
            loop.close()

    async def _serve(self, started: threading.Event) -> None:
        open_ones: set[asyncio.Task[None]] = set()

        def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._connection(reader, writer))
            open_ones.add(task)
            task.add_done_callback(open_ones.discard)

        server = await asyncio.start_server(begin, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await self._stopping.wait()
        server.close()
        for task in open_ones:
            task.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.lower().strip().split("\r\n")
                length = dict(line.split(": ", 1) for line in lines).get("content-length", "0")
                body = await reader.readexactly(int(length))
                path = first.split(" ")[1]
                await self._answer(path, json.loads(body) if body else None, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async def _answer(
        self, path: str, body: dict[str, object] | None, writer: asyncio.StreamWriter
    ) -> None:
        if body is None:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            return
        asked = Asked.of_body(path, body)
        recording = self._library.get((str(body.get("user")), asked))
        if recording is None:
            told = json.dumps({"error": {"message": f"nothing recorded: {asked}"}}).encode()
            writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-type: application/json\r\n")
            writer.write(b"content-length: %d\r\n\r\n%b" % (len(told), told))
            return
        kind = recording.content_type.encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n" % kind)
        if not asked.stream:
            writer.write(b"content-length: %d\r\n\r\n%b" % (len(recording.body), recording.body))
            return
        writer.write(b"transfer-encoding: chunked\r\n\r\n")
        for piece in self.cut([chunk.encode() for chunk in recording.chunks]):
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")
