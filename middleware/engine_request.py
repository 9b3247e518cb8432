"""Where an engine is, and what a request to it looks like."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import quote, unquote, urlsplit

PORTS: Final = {"http": 80, "https": 443}
_PLAIN_PATH: Final = re.compile(r"[\w/?&=%.,:;@~!$'()*+-]*", re.ASCII)
_ENDS_HEADER: Final = re.compile(r"[\r\n\0]")


class Origin:
    """Where an engine is.

    Args:
        url: ``http`` or ``https``, host and port, no path; a name and a password before the host
            are sent as basic credentials.
    """

    __slots__ = ("credentials", "head", "host", "is_secure", "port")

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.is_secure = parts.scheme == "https"
        self.host = (parts.hostname or "").encode("idna").decode()
        self.port = parts.port or PORTS[parts.scheme]
        shown = f"[{self.host}]" if ":" in self.host else self.host
        named = shown if self.port == PORTS[parts.scheme] else f"{shown}:{self.port}"
        self.head = f"host: {named}\r\nuser-agent: paceline\r\naccept: */*"
        self.credentials: dict[str, str] = {}
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            self.credentials = {"authorization": f"Basic {base64.b64encode(pair).decode()}"}


def request_head(
    origin: Origin, method: str, path: str, headers: Mapping[str, str], body: bytes | None
) -> bytes:
    """A request up to its body.

    Raises:
        ValueError: a header's value would end it.
    """
    if not _PLAIN_PATH.fullmatch(path):
        path = quote(path, safe="/?&=%.,:;@~!$'()*+-")
    lines = [f"{name}: {value}" for name, value in headers.items()]
    if _ENDS_HEADER.search("".join(lines)):
        raise ValueError("a header has a line's end in it")
    if body is not None:
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join((f"{method} {path} HTTP/1.1", origin.head, *lines, "", "")).encode("latin-1")
