"""Event streams read as the HTML standard says (section 9.2.6), and nothing more leniently."""

from __future__ import annotations

import re

_LINE = re.compile("\r\n|\n|\r")


def parse_events(stream: bytes) -> list[tuple[str, str]]:
    """Type and data of every event that a browser would dispatch."""
    text = stream.decode("utf-8").removeprefix("\ufeff")
    *lines, _unfinished = _LINE.split(text)
    events: list[tuple[str, str]] = []
    kind, data = "", ""
    for line in lines:
        if not line:
            if data:
                events.append((kind or "message", data.removesuffix("\n")))
            kind, data = "", ""
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "data":
            data += value + "\n"
    return events


def chunks_of(answer: bytes) -> list[bytes]:
    """The chunks of an HTTP answer in chunked encoding, its head and its closing chunk left out."""
    _, border, rest = answer.partition(b"\r\n\r\n")
    assert border, answer
    chunks = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        chunks.append(rest[:length])
        assert rest[length : length + 2] == b"\r\n", rest[:100]
        rest = rest[length + 2 :]
    assert chunks.pop() == b""
    return chunks
