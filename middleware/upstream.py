"""Talking to one engine: a small interface, and aiohttp behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import aiohttp

Headers = Sequence[tuple[bytes, bytes]]


class UpstreamError(Exception):
    """The engine could not be reached, or its answer broke off.

    Attributes:
        answered: whether anything of its answer had come.
    """

    def __init__(self, message: str, *, answered: bool) -> None:
        super().__init__(message)
        self.answered = answered


class UpstreamResponse(Protocol):
    """An engine's answer, its body still on the way."""

    status: int
    headers: Headers

    def chunks(self) -> AsyncIterator[bytes]:
        """The body's bytes as they come.

        Raises:
            UpstreamError: the engine broke off or fell silent.
        """

    def abort(self) -> None:
        """Close the connection at once; the engine sees its client leave.

        Harmless after the end.
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


class AiohttpUpstream:
    """An engine reached over HTTP/1.1 through a shared aiohttp session.

    Args:
        session: the proxy's session; its timeouts bound connecting and silence.
        url: base URL of the engine, without a slash at the end.
        api_key: key the engine wants, None for none.
    """

    def __init__(
        self, session: aiohttp.ClientSession, url: str, api_key: str | None = None
    ) -> None:
        self._session = session
        self._url = url
        self._credentials = {} if api_key is None else {"authorization": f"Bearer {api_key}"}

    async def send(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None
    ) -> UpstreamResponse:
        """See `Upstream.send`."""
        try:
            response = await self._session.request(
                method,
                self._url + path,
                headers=headers | self._credentials,
                data=body,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise UpstreamError(_reason(error), answered=False) from error
        return _AiohttpResponse(response)


class _AiohttpResponse:
    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: Headers = response.raw_headers

    async def chunks(self) -> AsyncIterator[bytes]:
        content = self._response.content
        try:
            while chunk := await content.readany():
                yield chunk
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise UpstreamError(_reason(error), answered=True) from error

    def abort(self) -> None:
        self._response.close()


def open_session(
    *, connect_timeout_seconds: float, read_timeout_seconds: float
) -> aiohttp.ClientSession:
    """A session for any number of engines.

    No cookies, no decompression, no limit of its own on connections.
    """
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=connect_timeout_seconds, sock_read=read_timeout_seconds
        ),
    )


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__
