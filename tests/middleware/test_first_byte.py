"""Engines that answer health and nothing else, over real sockets: streams go elsewhere in time."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from captured import metric
from paceline.errors import ConfigError
from paceline.middleware.config import make_config
from waiting import wait_until

CHAT = "/v1/chat/completions"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
PIECE = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n'
END = b"data: [DONE]\n\n"
TIMEOUT = {
    "first_byte_timeout_seconds": 0.3,
    "routing": {"policy": "round_robin", "circuit_backoff_seconds": 30},
}
LONGER_SECONDS = 0.7

Engines = Callable[..., Any]
Proxies = Callable[..., Any]


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def speaking(*, before_head: float = 0.0, before_body: float = 0.0, within: float = 0.0) -> Any:
    """An engine that streams, after some waits."""

    async def answer(_request: Any, _reader: Any, writer: Any) -> None:
        await asyncio.sleep(before_head)
        writer.write(HEAD)
        await asyncio.sleep(before_body)
        writer.write(chunked(PIECE))
        await asyncio.sleep(within)
        writer.write(chunked(END) + b"0\r\n\r\n")

    return answer


def silent(head: bytes) -> Any:
    """An engine that says no more than the head of an answer, or nothing at all."""

    async def answer(_request: Any, reader: Any, writer: Any) -> None:
        writer.write(head)
        await reader.read(1)

    return answer


def post(proxy: Any, *, stream: bool = True) -> tuple[int, bytes]:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream}
    address = proxy.url.removeprefix("http://")
    with closing(http.client.HTTPConnection(address, timeout=30)) as connection:
        connection.request("POST", CHAT, json.dumps(body))
        response = connection.getresponse()
        return response.status, response.read()


def all_healthy(proxy: Any) -> None:
    wait_until(lambda: all(r.healthy for r in proxy.proxy.replicas))


@pytest.mark.parametrize("head", [b"", HEAD], ids=["no head", "no body"])
def test_another_engine_gives_what_one_does_not_begin(
    engines: Engines, proxies: Proxies, head: bytes
) -> None:
    """The client gets one whole stream; the silent engine is counted, and left alone in the end."""
    hung, sound = engines(silent(head)), engines(speaking())
    proxy = proxies(hung.url, sound.url, **TIMEOUT)
    all_healthy(proxy)
    for _ in range(6):
        assert post(proxy) == (200, PIECE + END)
    assert len(hung.seen) == 3
    assert metric(proxy, "paceline_proxy_upstream_given_up_total", upstream="e0") == 3
    assert metric(proxy, "paceline_proxy_retries_total", upstream="e1") == 3
    assert metric(proxy, "paceline_proxy_circuit_transitions_total", upstream="e0", to="open") == 1
    first = "paceline_proxy_upstream_first_byte_seconds_count"
    assert (metric(proxy, first, upstream="e0"), metric(proxy, first, upstream="e1")) == (0, 6)


def test_who_is_the_last_to_be_asked_may_take_its_time(engines: Engines, proxies: Proxies) -> None:
    """A lone engine, and the second of two slow ones: a long prompt is late, never refused."""
    lone = engines(speaking(before_body=LONGER_SECONDS))
    proxy = proxies(lone.url, **TIMEOUT)
    assert post(proxy) == (200, PIECE + END)
    assert len(lone.seen) == 1
    pair = [engines(speaking(before_head=LONGER_SECONDS)) for _ in range(2)]
    proxy = proxies(*(engine.url for engine in pair), **TIMEOUT)
    all_healthy(proxy)
    assert post(proxy) == (200, PIECE + END)
    assert [len(engine.seen) for engine in pair] == [1, 1]


def test_only_the_first_byte_of_a_stream_is_waited_for(engines: Engines, proxies: Proxies) -> None:
    """A pause within a stream, and an answer that comes as a whole, may be longer."""
    pausing = [engines(speaking(within=LONGER_SECONDS)) for _ in range(2)]
    proxy = proxies(*(engine.url for engine in pausing), **TIMEOUT)
    all_healthy(proxy)
    assert post(proxy) == (200, PIECE + END)
    assert sum(len(engine.seen) for engine in pausing) == 1

    async def whole(_request: Any, _reader: Any, writer: Any) -> None:
        await asyncio.sleep(LONGER_SECONDS)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
        writer.write(b"content-length: 2\r\n\r\n{}")

    slow = [engines(whole) for _ in range(2)]
    proxy = proxies(*(engine.url for engine in slow), **TIMEOUT)
    all_healthy(proxy)
    assert post(proxy, stream=False) == (200, b"{}")
    assert sum(len(engine.seen) for engine in slow) == 1


def test_it_has_to_be_shorter_than_any_silence_that_is_allowed() -> None:
    """A longer one would never pass."""
    with pytest.raises(ConfigError, match=r"first_byte_timeout_seconds is 700, .* 600"):
        make_config(
            upstreams=[{"name": "e", "url": "http://127.0.0.1:9"}], first_byte_timeout_seconds=700
        )
