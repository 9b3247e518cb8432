"""Sends recorded streams again, byte for byte at their times: an engine for the proxy in front.

Run as ``python -m paceline.benchmarks.leak.replay_server PORT FILE``. A request's ``model`` is the
number of the recording that answers it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Final

import uvloop

from paceline.benchmarks.leak.recordings import Recording, read_recordings

HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
HEALTHY: Final = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
END: Final = b"0\r\n\r\n"
BACKLOG: Final = 2048


class ReplayServer:
    """Answers requests on any number of connections.

    Args:
        recordings: what it can say.
    """

    def __init__(self, recordings: list[Recording]) -> None:
        self._recordings = recordings

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection until its client leaves."""
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
                body = await reader.readexactly(int(length or 0))
                if head.startswith(b"post"):
                    await self._replay(writer, self._recordings[int(json.loads(body)["model"])])
                else:
                    writer.write(HEALTHY)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def _replay(self, writer: asyncio.StreamWriter, recording: Recording) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        writer.write(HEAD)
        for seconds, data in recording.pieces:
            await asyncio.sleep(max(0.0, began + seconds - loop.time()))
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await writer.drain()
        writer.write(END)


async def serve(port: int, recordings: list[Recording]) -> None:
    """Serve on a loopback port until cancelled."""
    server = await asyncio.start_server(
        ReplayServer(recordings).connection, "127.0.0.1", port, backlog=BACKLOG
    )
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), read_recordings(Path(sys.argv[2])).streams))
