"""When streams begin and how they go on, as Prometheus is told; by a clock that the tests move."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Callable
from typing import Any

import openai
import pytest
from prometheus_client import CollectorRegistry

from captured import metric_in
from paceline.middleware.traffic import DONE, Traffic, says_nothing
from waiting import wait_until

OPENING = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
PIECE = b'data: {"choices":[{"index":0,"delta":{"content":" and"}}]}\n\n'


class Clock:
    """Seconds that go by when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Stands still until it is moved."""
    return Clock()


def told(traffic: Traffic, name: str, **labels: str) -> float:
    registry = CollectorRegistry()
    registry.register(traffic)
    value = registry.get_sample_value(f"paceline_proxy_{name}", labels)
    assert value is not None, name
    return value


def test_a_stream_is_timed(clock: Clock) -> None:
    """The first piece that says something, then the gaps; openings and the end do not count."""
    traffic, who = Traffic(clock), {"tenant": "a", "workload": "w"}
    watch = traffic.watch("a", "w")
    assert told(traffic, "waiting", **who) == told(traffic, "generating", **who) == 1
    watch.wrote(OPENING)
    for seconds, piece in ((0.3, PIECE), (0.02, PIECE), (0.02, PIECE), (0.5, DONE)):
        clock.now += seconds
        watch.wrote(piece)
    assert told(traffic, "waiting", **who) == 0
    watch.finish()
    assert told(traffic, "generating", **who) == 0
    assert told(traffic, "first_token_seconds_sum", **who) == pytest.approx(0.3)
    assert told(traffic, "first_token_seconds_bucket", le="0.25", **who) == 0
    assert told(traffic, "first_token_seconds_bucket", le="0.5", **who) == 1
    assert told(traffic, "inter_token_seconds_count", **who) == 2
    assert told(traffic, "inter_token_seconds_sum", **who) == pytest.approx(0.04)
    assert watch.num_pieces == 3


def test_a_request_queues_until_an_engine_is_asked(clock: Clock) -> None:
    """From when it was there; a second engine that is asked in place of the first adds nothing."""
    traffic, who = Traffic(clock), {"tenant": "a", "workload": ""}
    clock.now += 0.02
    watch = traffic.watch("a", "", clock.now - 0.02)
    clock.now += 0.01
    for seconds in (0.0, 5.0):
        clock.now += seconds
        watch.asked()
    watch.wrote(PIECE)
    assert watch.queue_seconds == pytest.approx(0.03)
    assert watch.first_token_seconds == pytest.approx(5.03)
    assert told(traffic, "queue_seconds_sum", **who) == pytest.approx(0.03)
    assert told(traffic, "queue_seconds_bucket", le="0.025", **who) == 0
    assert told(traffic, "queue_seconds_bucket", le="0.05", **who) == 1
    traffic.watch("a", "").finish()  # it was refused: no engine was asked
    assert told(traffic, "queue_seconds_count", **who) == 1


def test_what_never_said_anything_no_longer_waits(clock: Clock) -> None:
    """A whole answer, or one that failed, leaves no trace but the gauges, which go back."""
    traffic, who = Traffic(clock), {"tenant": "a", "workload": ""}
    watch = traffic.watch("a", "")
    watch.wrote(OPENING)
    watch.finish()
    assert watch.first_token_seconds is None
    assert told(traffic, "waiting", **who) == told(traffic, "generating", **who) == 0
    assert told(traffic, "first_token_seconds_count", **who) == 0


@pytest.mark.parametrize(
    ("piece", "is_empty"),
    [
        (OPENING, True),
        (OPENING.replace(b'":"', b'": "').replace(b'":{', b'": {'), True),
        (b'data: {"choices":[{"delta":{"role":"assistant","content":null}}]}\n\n', True),
        (PIECE, False),
        (OPENING + PIECE, False),
        (b'data: {"choices":[{"text":" and","index":0}]}\n\n', False),
        (b'event: message_start\ndata: {"type":"message_start"}\n\n', True),
        (b'event: content_block_delta\ndata: {"type":"content_block_delta"}\n\n', False),
        (b'event: response.created\ndata: {"type":"response.created"}\n\n', True),
        (b'event: response.output_text.delta\ndata: {"delta":"and"}\n\n', False),
    ],
)
def test_openings_are_told_from_tokens(piece: bytes, is_empty: bool) -> None:
    """Of each of the streaming formats."""
    assert says_nothing(piece) == is_empty


async def reply_slowly(_request: Any, _reader: Any, writer: Any) -> None:
    """A stream whose first token takes a while."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
    for part in (OPENING, PIECE, PIECE, DONE):
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(0.05)
    raise ConnectionResetError  # the stream has no length: its end is the connection's


def test_a_proxy_tells_them_of_what_it_serves(
    engines: Callable[..., Any], proxies: Callable[..., Any]
) -> None:
    """By tenant and by the workload that a client names, however many it names."""
    proxy = proxies(engines(reply_slowly).url)
    with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="k", max_retries=0) as client:
        for number in range(14):
            asked = client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": "hi"}],
                stream=True,
                extra_headers={"x-paceline-workload": f"kind-{number}"},
            )
            assert len(list(asked)) == 3

    def told_now() -> str:
        with urllib.request.urlopen(f"{proxy.url}/metrics", timeout=10) as answer:  # noqa: S310  our own
            text: str = answer.read().decode()
            return text

    wait_until(lambda: metric_in(told_now(), "paceline_proxy_generating") == 0)
    text = told_now()
    first, gap = "paceline_proxy_first_token_seconds", "paceline_proxy_inter_token_seconds"
    for workload, number in (("kind-0", 1), ("kind-11", 1), ("other", 2), ("kind-12", 0)):
        who = {"tenant": "local", "workload": workload}
        assert metric_in(text, f"{first}_count", **who) == number
        assert metric_in(text, f"{gap}_count", **who) == number
    assert metric_in(text, f"{first}_sum", workload="kind-0") >= 0.05
