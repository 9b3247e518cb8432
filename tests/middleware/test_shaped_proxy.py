"""Shaped answers over real sockets: what clients get, and when it reaches them."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import openai
import pytest

from paceline.errors import ConfigError
from paceline.middleware.config import make_config
from paceline.middleware.server import RunningProxy
from paceline.policies.tenants import hash_key
from strict_events import chunks_of, parse_events
from waiting import wait_until

SHAPES: Final = ("aggregate", "padded")
SIZE: Final = 1024
SHAPING: Final = {"interval_ms": 20, "bytes_per_tick": SIZE, "round_ticks": 4}
BODY: Final = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
WORDS: Final = ("Hé", "llo", " there", ",", " world", " " + "long" * 700)
DONE: Final = b"data: [DONE]\n\n"

Engines = Callable[..., Any]
Proxies = Callable[..., Any]


def chunk(word: str, border: bytes = b"\n\n") -> bytes:
    choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
    body = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: " + json.dumps(body | {"choices": [choice]}).encode() + border


EVENTS: Final = [b": keep-alive\n\n", *map(chunk, WORDS), chunk("!", b"\r\n\r\n"), DONE]


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def stream_events(_request: Any, _reader: Any, writer: Any) -> None:
    """All events, one of them in two writes, in the pace of a fast engine."""
    writer.write(HEAD)
    said = b"".join(EVENTS)
    for start in range(0, len(said), 300):
        writer.write(framed(said[start : start + 300]))
        await writer.drain()
        await asyncio.sleep(0.003)
    writer.write(b"0\r\n\r\n")


@pytest.fixture
def shaped(proxies: Proxies, tmp_path: Path) -> Callable[..., RunningProxy]:
    """A proxy whose tenants are named as the shapes of their answers, and so are their keys."""
    path = tmp_path / "tenants.yaml"
    tenants = [
        {"name": name, "keys": [hash_key(name)], "side_channel": name} for name in ("open", *SHAPES)
    ]
    path.write_text(json.dumps({"tenants": tenants}))

    def start(*urls: str, **shaping: int) -> RunningProxy:
        proxy: RunningProxy = proxies(*urls, policy_file=path, shaping=SHAPING | shaping)
        return proxy

    return start


@contextmanager
def connected(
    url: str, key: str, *, receive_bytes: int = 0, **body: Any
) -> Iterator[socket.socket]:
    """A connection on which a request has been sent."""
    host, _, port = url.removeprefix("http://").partition(":")
    data = json.dumps(BODY | {"stream": True} | body).encode()
    with socket.socket() as connection:
        if receive_bytes:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        connection.settimeout(20)
        connection.connect((host, int(port)))
        connection.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nx-api-key: {key}\r\n"
            f"content-length: {len(data)}\r\n\r\n".encode()
            + data
        )
        yield connection


def read_until(connection: socket.socket, end: bytes) -> bytes:
    data = b""
    while end not in data:
        part = connection.recv(1 << 16)
        assert part, data
        data += part
    return data


def answer_to(url: str, key: str, **body: Any) -> bytes:
    """All bytes of the answer to a stream."""
    with connected(url, key, **body) as connection:
        return read_until(connection, b"\r\n0\r\n\r\n")


def sdk(url: str, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=20)


def metric(proxy: RunningProxy, name: str, shape: str) -> float:
    labels = {"tenant": shape, "side_channel": shape}
    value = proxy.proxy.metrics.registry.get_sample_value(f"paceline_proxy_{name}_total", labels)
    return value or 0.0


@pytest.mark.parametrize("shape", SHAPES)
def test_strict_parsers_and_the_sdk_read_what_the_engine_said(
    engines: Engines, shaped: Callable[..., RunningProxy], shape: str
) -> None:
    """The events are the engine's in number, order and content; so is the SDK's text."""
    proxy = shaped(engines(stream_events).url)
    sent = b"".join(chunks_of(answer_to(proxy.url, shape)))
    assert parse_events(sent) == parse_events(b"".join(EVENTS))
    if shape == "aggregate":
        assert sent == b"".join(EVENTS)
    with sdk(proxy.url, shape) as client:
        stream = client.chat.completions.create(**BODY, stream=True)  # type: ignore[call-overload]
        said = [part.choices[0].delta.content for part in stream]
    assert said == [*WORDS, "!"]


def test_padded_ticks_have_one_size_and_the_same_number_for_like_streams(
    engines: Engines, shaped: Callable[..., RunningProxy]
) -> None:
    """Every write has the configured size, and what does not fit waits; the head asks for that."""
    proxy = shaped(engines(stream_events).url)
    answer = answer_to(proxy.url, "padded")
    chunks = chunks_of(answer)
    assert {len(data) for data in chunks} == {SIZE}
    assert len(chunks) >= len(b"".join(EVENTS)) / SIZE
    assert DONE in chunks[-1]
    head = answer.partition(b"\r\n\r\n")[0].lower()
    assert head.count(b"cache-control") == 1
    assert b"no-transform" in head
    wait_until(lambda: metric(proxy, "shaped_answers", "padded") == 1)
    assert metric(proxy, "shaping_ticks", "padded") == len(chunks)
    padding = len(chunks) * SIZE - len(b"".join(EVENTS))
    assert metric(proxy, "shaping_padding_bytes", "padded") == padding
    assert metric(proxy, "shaping_pieces", "padded") > 0
    assert metric(proxy, "shaping_held_seconds", "padded") > 0


@pytest.mark.parametrize("shape", SHAPES)
def test_a_tick_reaches_the_client_at_once(
    engines: Engines, shaped: Callable[..., RunningProxy], shape: str
) -> None:
    """The engine goes on only when the client has what it said: nothing lingers in a buffer."""
    client_has_it = asyncio.Semaphore(0)
    loops: list[asyncio.AbstractEventLoop] = []

    async def wait_for_client(_request: Any, _reader: Any, writer: Any) -> None:
        loops.append(asyncio.get_running_loop())
        writer.write(HEAD)
        for number in range(4):
            writer.write(framed(chunk(f"word {number}")))
            await client_has_it.acquire()
        writer.write(framed(DONE) + b"0\r\n\r\n")

    proxy = shaped(engines(wait_for_client).url)
    with connected(proxy.url, shape) as connection:
        for number in range(4):
            read_until(connection, f"word {number}".encode())
            loops[0].call_soon_threadsafe(client_has_it.release)
        read_until(connection, b"\r\n0\r\n\r\n")


def test_a_padded_stream_does_not_wait_for_the_first_event(
    engines: Engines, shaped: Callable[..., RunningProxy]
) -> None:
    """Ticks begin when the engine has accepted; the time to the first token is not to be seen."""
    client_has_filler = asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def read_a_long_prompt(_request: Any, _reader: Any, writer: Any) -> None:
        loops.append(asyncio.get_running_loop())
        writer.write(HEAD)
        await client_has_filler.wait()
        writer.write(framed(chunk("late") + DONE) + b"0\r\n\r\n")

    proxy = shaped(engines(read_a_long_prompt).url)
    with connected(proxy.url, "padded") as connection:
        early = read_until(connection, b": ")
        loops[0].call_soon_threadsafe(client_has_filler.set)
        rest = read_until(connection, b"\r\n0\r\n\r\n")
    assert b"data:" not in early
    [late, done] = parse_events(b"".join(chunks_of(early + rest)))
    assert "late" in late[1]
    assert done[1] == "[DONE]"


async def die_after_the_head(_request: Any, _reader: Any, writer: Any) -> None:
    writer.write(HEAD)
    await writer.drain()
    await asyncio.sleep(0.1)  # time for filler
    writer.close()
    raise ConnectionResetError


@pytest.mark.parametrize("shape", SHAPES)
def test_a_death_before_the_first_event_goes_to_the_next_engine(
    engines: Engines, shaped: Callable[..., RunningProxy], shape: str
) -> None:
    """Also when filler has been sent; with no engine left the stream ends with an error event."""
    dying, sound = engines(die_after_the_head), engines(stream_events)
    with sdk(shaped(dying.url, sound.url).url, shape) as client:
        for session in range(12):
            stream = client.chat.completions.create(  # type: ignore[call-overload]
                **BODY, stream=True, extra_headers={"x-session-id": str(session)}
            )
            assert [part.choices[0].delta.content for part in stream] == [*WORDS, "!"]
    assert dying.seen
    with sdk(shaped(dying.url).url, shape) as client, pytest.raises(openai.APIError) as error:
        list(client.chat.completions.create(**BODY, stream=True))  # type: ignore[call-overload]
    assert "engine failed" in error.value.message


@pytest.mark.parametrize("shape", SHAPES)
def test_a_death_in_a_stream_ends_in_one_error_event(
    engines: Engines, shaped: Callable[..., RunningProxy], shape: str
) -> None:
    """Whole events, the error, and a proper end on the grid."""

    async def die(_request: Any, _reader: Any, writer: Any) -> None:
        writer.write(HEAD + framed(chunk("before")) + framed(b'data: {"half'))
        await writer.drain()
        writer.close()
        raise ConnectionResetError

    chunks = chunks_of(answer_to(shaped(engines(die).url).url, shape))
    before, failed = parse_events(b"".join(chunks))
    assert "before" in before[1]
    assert json.loads(failed[1])["error"]["code"] == "upstream_error"
    if shape == "padded":
        assert {len(data) for data in chunks} == {SIZE}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_takes_the_engines_work_with_it(
    engines: Engines, shaped: Callable[..., RunningProxy], shape: str, *, stream: bool
) -> None:
    """Closing the client's connection closes the engine's, in the middle of a stream or before."""

    async def never_end(_request: Any, reader: Any, writer: Any) -> None:
        if stream:
            writer.write(HEAD + framed(chunk("word")))
        await writer.drain()
        await engine.wait_until_left(reader)

    engine = engines(never_end)
    proxy = shaped(engine.url)
    with connected(proxy.url, shape, stream=stream) as connection:
        if stream:
            read_until(connection, b"word")
        wait_until(lambda: len(engine.seen) == 1)
    assert engine.left.wait(5)
    wait_until(lambda: metric(proxy, "shaped_answers", shape) == 1)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_client_that_does_not_read_holds_the_engine_back(
    engines: Engines, shaped: Callable[..., RunningProxy], shape: str
) -> None:
    """What waits for a slow client is bounded: the engine's connection stops taking more."""
    event = chunk("x" * 60_000)
    taken = 0

    async def flood(_request: Any, _reader: Any, writer: Any) -> None:
        nonlocal taken
        writer.write(HEAD)
        try:
            while taken < 256 << 20:
                writer.write(framed(event))
                await asyncio.wait_for(writer.drain(), 2)
                taken += len(event)
        except TimeoutError:
            engine.left.set()

    engine = engines(flood)
    with connected(shaped(engine.url).url, shape, receive_bytes=4096):
        assert engine.left.wait(60)
    assert taken < 32 << 20  # the kernel's buffers are most of it


def test_whole_answers_are_padded_to_a_bucket(
    engines: Engines, shaped: Callable[..., RunningProxy]
) -> None:
    """Short and longer replies have one length; JSON and SDK are content; errors are padded too."""

    async def reply(request: Any, _reader: Any, writer: Any) -> None:
        number = request.json["max_tokens"]
        message = {"role": "assistant", "content": "x" * number}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
        data = json.dumps(body | {"choices": [choice]}).encode()
        status = b"200 OK" if number else b"400 Bad Request"
        head = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(data)
        writer.write(b"HTTP/1.1 " + status + b"\r\n" + head + data)

    proxy = shaped(engines(reply).url)
    lengths = []
    with sdk(proxy.url, "padded") as client:
        for number in (1, 700, 1500):
            answer = client.chat.completions.with_raw_response.create(
                **BODY,  # type: ignore[arg-type]
                max_tokens=number,
            )
            assert answer.parse().choices[0].message.content == "x" * number
            lengths.append(int(answer.headers["content-length"]))
            assert len(answer.content) == lengths[-1]
        with pytest.raises(openai.BadRequestError) as error:
            client.chat.completions.create(**BODY, max_tokens=0)  # type: ignore[call-overload]
    assert int(error.value.response.headers["content-length"]) == SIZE
    assert lengths == [SIZE, SIZE, 2 * SIZE]
    with sdk(proxy.url, "aggregate") as client:
        raw = client.chat.completions.with_raw_response.create(**BODY, max_tokens=1)  # type: ignore[arg-type]
    assert len(raw.content) < 300


def test_the_size_of_ticks_follows_what_is_asked_for_and_nothing_else(
    engines: Engines, shaped: Callable[..., RunningProxy]
) -> None:
    """Two choices, or log probabilities, double it; the reply is the same in all of them."""
    url = shaped(engines(stream_events).url).url
    for body, size in (({}, 1), ({"n": 2}, 2), ({"logprobs": True, "top_logprobs": 2}, 2)):
        chunks = chunks_of(answer_to(url, "padded", **body))
        assert {len(data) for data in chunks} == {size * SIZE}


def test_open_tenants_beside_shaped_ones_get_the_engines_bytes(
    engines: Engines, shaped: Callable[..., RunningProxy]
) -> None:
    """Shaping is a tenant's own."""
    proxy = shaped(engines(stream_events).url)
    answer = answer_to(proxy.url, "open")
    assert b"".join(chunks_of(answer)) == b"".join(EVENTS)
    assert b"no-transform" not in answer
    assert metric(proxy, "shaped_answers", "open") == 0


@pytest.mark.parametrize(
    "shaping", [{"interval_ms": 1}, {"bytes_per_tick": 1000}, {"round_ticks": 0}, {"period": 5}]
)
def test_settings_that_cannot_work_are_refused(shaping: dict[str, int]) -> None:
    """The message names the setting."""
    with pytest.raises(ConfigError, match=f"shaping.{next(iter(shaping))}"):
        make_config(upstreams=[{"name": "e", "url": "http://127.0.0.1:1"}], shaping=shaping)
