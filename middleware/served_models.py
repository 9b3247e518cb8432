"""Which models an engine serves, as it tells at ``/v1/models``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from paceline.middleware.endpoints import MODELS_PATH
from paceline.middleware.upstream import Upstream, UpstreamError

HTTP_OK: Final = 200
MAX_BYTES: Final = 1 << 20
"""Of a list: some thousand models."""

Entries = Mapping[str, msgspec.Raw]
"""What an engine tells of each model, as it stands in its list, by the model's name."""


class _Entry(msgspec.Struct):
    id: str


class _List(msgspec.Struct):
    data: list[msgspec.Raw]


async def ask_models(upstream: Upstream) -> Entries | None:
    """An engine's list; None if it has none that can be read.

    Has no time limit of its own.
    """
    try:
        response = await upstream.send("GET", MODELS_PATH, {}, None)
    except UpstreamError:
        return None
    body = bytearray()
    try:
        async for chunk in response.chunks():
            body += chunk
            if len(body) > MAX_BYTES:
                return None
    except UpstreamError:
        return None
    finally:
        response.abort()
    return read_models(bytes(body)) if response.status == HTTP_OK else None


def read_models(body: bytes) -> Entries | None:
    """The entries of a list of models; None if it is no such list. O(bytes)."""
    try:
        raws = msgspec.json.decode(body, type=_List).data
        return {msgspec.json.decode(raw, type=_Entry).id: raw for raw in raws}
    except msgspec.MsgspecError:
        return None


def joined_models(lists: Iterable[Entries]) -> bytes | None:
    """One list of all models, each as the first engine that has it tells of it.

    None if there are not two engines that serve different ones: any one's own list says it all.
    """
    found: dict[str, msgspec.Raw] = {}
    sets = set()
    for entries in lists:
        sets.add(frozenset(entries))
        for name, entry in entries.items():
            found.setdefault(name, entry)
    if len(sets) <= 1:
        return None
    return msgspec.json.encode({"object": "list", "data": list(found.values())})
