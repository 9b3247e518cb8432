"""What every client has: whom it asks, and how soon the engine is free when it leaves a stream.

A client prints one JSON object on its last line; the tests judge it.
"""

from __future__ import annotations

import json
import os
import re
import time
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any

BASE_URL = os.environ["PACELINE_URL"]
KEY = os.environ["PACELINE_KEY"]
MODEL = os.environ["PACELINE_MODEL"]
QUESTION = "Name some rivers of Europe and their cities."
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
MAX_TOKENS = 16
ENDLESS = 2000
"""Tokens of a reply that ends long after it is left."""
NUM_TIMES = 3
WAIT_SECONDS = 30.0

Leave = Callable[[], object]
LeaveLater = Callable[[], Awaitable[object]]


def tell(**found: object) -> None:
    """Print what was found for the test."""
    print("\n" + json.dumps(found), flush=True)


def num_running() -> int:
    """Requests that the engine answers now, by its own count."""
    with urllib.request.urlopen(os.environ["ENGINE_METRICS"], timeout=10) as response:  # noqa: S310  our own
        text = response.read().decode()
    found = re.search(
        r"^(?:paceline_engine_running|vllm:num_requests_running\S*) (\S+)", text, re.M
    )
    assert found, text
    return int(float(found[1]))


def _seconds_until(wanted: int) -> float:
    began = time.perf_counter()
    while num_running() != wanted:
        assert time.perf_counter() - began < WAIT_SECONDS, f"not {wanted} requests in time"
        time.sleep(0.002)
    return time.perf_counter() - began


def _leave_plainly() -> float:
    """Milliseconds until the engine is free of a stream that it served itself, over plain HTTP."""
    url = os.environ["ENGINE_METRICS"].removesuffix("/metrics") + "/v1/chat/completions"
    asked = {"model": MODEL, "messages": MESSAGES, "max_tokens": ENDLESS, "stream": True}
    request = urllib.request.Request(  # noqa: S310  our own
        url, json.dumps(asked).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as stream:  # noqa: S310  our own
        stream.readline()
        _seconds_until(1)
    return _seconds_until(0) * 1000


def leave(opened: Callable[[], Leave]) -> list[tuple[float, float]]:
    """Milliseconds until the engine is free, for each of a few streams, and of a plain one.

    Args:
        opened: begins a long stream, reads of it, and gives what closes it.
    """
    taken = []
    for _ in range(NUM_TIMES):
        closes = opened()
        _seconds_until(1)  # a stream may open before its request runs
        closes()
        taken.append((_seconds_until(0) * 1000, _leave_plainly()))
    return taken


async def leave_later(
    opened: Callable[[], Awaitable[LeaveLater]],
) -> list[tuple[float, float]]:
    """`leave` for what is awaited."""
    import asyncio

    taken = []
    for _ in range(NUM_TIMES):
        closes = await opened()
        await asyncio.to_thread(_seconds_until, 1)
        began = time.perf_counter()
        await closes()
        await asyncio.to_thread(_seconds_until, 0)
        milliseconds = (time.perf_counter() - began) * 1000
        taken.append((milliseconds, await asyncio.to_thread(_leave_plainly)))
    return taken
