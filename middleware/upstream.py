"""Talking to one engine: a small interface; `engine_client` has what is behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

import aiohttp

Headers = Sequence[tuple[bytes, bytes]]


class UpstreamError(Exception):
    """The engine could not be reached, or its answer broke off.

    Attributes:
        answered: whether anything of its answer had come.
        connected: whether it could be connected to; False: it was sent nothing.
    """

    def __init__(self, message: str, *, answered: bool, connected: bool = True) -> None:
        super().__init__(message)
        self.answered = answered
        self.connected = connected


class UpstreamResponse(Protocol):
    """An engine's answer, its body still on the way.

    Attributes:
        status: of HTTP.
        headers: names in lower case.
    """

    status: int
    headers: Headers

    def chunks(self) -> AsyncIterator[bytes]:
        """The body's bytes as they come.

        Raises:
            UpstreamError: the engine broke off or fell silent.
        """

    def pass_to(self, take: Callable[[bytes], bool]) -> None:
        """Hand what comes to `take` as it comes, instead of waking who waits in `chunks` for it.

        `take` tells whether it took it; if not, `chunks` gives it. Whatever it raises, `chunks`
        raises. The last piece always comes from `chunks`.
        """

    def abort(self) -> None:
        """Close the connection at once; the engine sees its client leave.

        Harmless after the end.
        """

    def give_up(self, reason: str, *, silent_seconds: float) -> bool:
        """End the body with an `UpstreamError`, unless something of it came within that time.

        Returns whether it was ended. Harmless after the end.
        """


class Upstream(Protocol):
    """One engine."""

    async def send(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None
    ) -> UpstreamResponse:
        """Send a request; returns when the answer's head is there.

        Raises:
            UpstreamError: the engine cannot be reached or did not answer.
        """


class SilenceWatch:
    """Notices when nothing has been heard for a while.

    One timer that looks at the time of the last sign of life when it fires; moving a timer at each
    chunk, as aiohttp's own read timeout does, took a sixth of the time that a chunk takes.

    Args:
        seconds: longest silence.
        on_silence: called once when it was longer.
    """

    def __init__(self, seconds: float, on_silence: Callable[[], None]) -> None:
        self.reason = ""
        self._seconds = seconds
        self._on_silence = on_silence
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._timer = self._loop.call_later(seconds, self._look)

    def heard(self) -> None:
        """A sign of life came. O(1)."""
        self._last = self._loop.time()

    def give_up(self, reason: str, seconds: float) -> bool:
        """Take it for silent now if nothing came within `seconds`; whether it was."""
        if self._timer.cancelled() or self._loop.time() - self._last < seconds:
            return False
        self._timer.cancel()
        self.reason = reason
        self._on_silence()
        return True

    def stop(self) -> None:
        """Watch no longer."""
        self._timer.cancel()

    def _look(self) -> None:
        left = self._last + self._seconds - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
            return
        self.reason = f"nothing came for {self._seconds:g} s"
        self._on_silence()


def open_session(*, connect_timeout_seconds: float) -> aiohttp.ClientSession:
    """A session for any number of engines.

    No cookies, no decompression, no limit of its own on connections.

    Args:
        connect_timeout_seconds: longest wait for a connection, its name and TLS included.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        # `connect` counts names and TLS too
        timeout=aiohttp.ClientTimeout(total=None, connect=connect_timeout_seconds),
    )
