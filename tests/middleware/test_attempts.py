"""Tries at engines that answer with errors or break off, over real sockets."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from captured import metric
from waiting import wait_until

CHAT = "/v1/chat/completions"
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]})

Engines = Callable[..., Any]
Proxies = Callable[..., Any]


def answering(status: int) -> Any:
    async def answer(_request: Any, _reader: Any, writer: Any) -> None:
        data = b'{"error": "of the engine"}'
        head = b"HTTP/1.1 %d Error\r\ncontent-type: application/json\r\n" % status
        writer.write(head + b"content-length: %d\r\n\r\n" % len(data) + data)

    return answer


async def break_off(_request: Any, _reader: Any, writer: Any) -> None:
    writer.transport.abort()
    raise ConnectionResetError


def post(url: str, session: str = "") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    with closing(connection):
        connection.request("POST", CHAT, BODY, {"x-session-id": session} if session else {})
        response = connection.getresponse()
        return response.status, response.read()


def all_healthy(proxy: Any) -> None:
    wait_until(lambda: all(r.healthy for r in proxy.proxy.replicas))


@pytest.mark.parametrize("status", [502, 503, 504])
def test_who_says_that_it_does_not_serve_is_not_asked_alone(
    engines: Engines, proxies: Proxies, status: int
) -> None:
    """Another engine answers; where there is none the engine's own answer is passed on."""
    refusing, sound = engines(answering(status)), engines()
    proxy = proxies(refusing.url, sound.url)
    all_healthy(proxy)
    assert {post(proxy.url, str(n))[0] for n in range(8)} == {200}
    assert refusing.seen
    assert metric(proxy, "paceline_proxy_retries_total", upstream="e1") == len(refusing.seen)
    opened = metric(proxy, "paceline_proxy_circuit_transitions_total", upstream="e0", to="open")
    assert opened == 0 or status != 503  # who is overloaded is well
    lone = proxies(refusing.url)
    assert post(lone.url) == (status, b'{"error": "of the engine"}')
    assert metric(lone, "paceline_proxy_retries_total") == 0
    assert metric(lone, "paceline_proxy_upstream_failures_total") == 1


def test_other_errors_are_the_clients(engines: Engines, proxies: Proxies) -> None:
    """A request that makes an engine say 500 is not sent to all the others."""
    pair = [engines(answering(500)), engines(answering(500))]
    proxy = proxies(*(engine.url for engine in pair))
    all_healthy(proxy)
    for number in range(6):
        assert post(proxy.url, str(number))[0] == 500
    assert sum(len(engine.seen) for engine in pair) == 6
    assert metric(proxy, "paceline_proxy_circuit_transitions_total") == 0


def test_an_engine_that_breaks_off_is_left_alone_though_its_health_is_good(
    engines: Engines, proxies: Proxies
) -> None:
    """Three in a row open its circuit; after the backoff one request tries it, and closes it."""
    broken, sound = engines(break_off), engines()
    proxy = proxies(
        broken.url, sound.url, routing={"policy": "round_robin", "circuit_backoff_seconds": 0.4}
    )
    all_healthy(proxy)
    for _ in range(12):
        assert post(proxy.url)[0] == 200
    assert 3 <= len(broken.seen) <= 5  # a slow machine may have tried it again
    replica = proxy.proxy.replicas[0]
    assert replica.healthy
    broken.script = sound.script
    wait_until(lambda: replica.state == "half_open")
    wait_until(lambda: post(proxy.url)[0] == 200 and replica.state == "up")


def test_retries_end(engines: Engines, proxies: Proxies) -> None:
    """A request that ends each engine it reaches does not reach them all."""
    four = [engines(break_off) for _ in range(4)]
    proxy = proxies(*(engine.url for engine in four), routing={"retries": 1})
    all_healthy(proxy)
    status, data = post(proxy.url)
    assert (status, json.loads(data)["error"]["code"]) == (502, "upstream_error")
    assert sum(len(engine.seen) for engine in four) == 2
