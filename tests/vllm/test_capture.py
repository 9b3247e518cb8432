"""The proxy records what a real vLLM serves: plain, and one with our worker that records too."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from captured import metric, wait_recorded
from paceline.caches import ModelFingerprint
from paceline.middleware.capture import fingerprint_of
from paceline.middleware.config import CaptureConfig, make_config
from paceline.middleware.server import RunningProxy, running_proxy
from redis_server import RedisServer
from vllm_server import VllmServer
from waiting import wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.redis, pytest.mark.timeout(900)]

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SAID_CALL = '<tool_call>\n{"name": "ride", "arguments": {"to": "Ghent"}}\n</tool_call>'
TOOL = {"type": "function", "function": {"name": "ride", "parameters": {"type": "object"}}}


@dataclass
class Stack:
    """vLLM without and with our worker on one Redis, a tenant's memory for each."""

    plain: VllmServer
    ours: VllmServer
    redis: RedisServer
    model: ModelFingerprint
    capturing: RunningProxy
    bare: RunningProxy
    both: RunningProxy


@pytest.fixture(scope="module")
def stack(target_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything, started once."""
    folder = tmp_path_factory.mktemp("capture")
    redis = RedisServer(folder)
    tools = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    plain = VllmServer(target_folder, None, folder, "plain", *tools)
    ours = VllmServer(target_folder, redis.url, folder, "ours")
    capture = {"redis_url": redis.url, "model": "target", "tokenizer": target_folder}
    with ExitStack() as exits:
        redis.start()
        exits.callback(redis.kill)
        for server in (plain, ours):
            server.start()
            exits.callback(server.stop)
        for server in (plain, ours):
            server.wait_ready()

        def proxy(server: VllmServer, **settings: Any) -> RunningProxy:
            upstreams = [{"name": server.name, "url": server.url}]
            config = make_config(listen={"port": 0}, upstreams=upstreams, **settings)
            running = exits.enter_context(running_proxy(config))
            wait_until(lambda: running.proxy.ready)
            return running

        yield Stack(
            plain, ours, redis, fingerprint_of(CaptureConfig.model_validate(capture)),
            proxy(plain, capture=capture), proxy(plain), proxy(ours, capture=capture),
        )  # fmt: skip


def post(proxy: RunningProxy, path: str, body: dict[str, Any], session: str) -> tuple[bytes, str]:
    """Body and request id of an answer."""
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=120)
    with closing(connection):
        connection.request("POST", path, json.dumps(body), {"x-session-id": session})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return response.read(), response.getheader("x-request-id", "")


def asking(path: str, **options: Any) -> dict[str, Any]:
    story: Any = [{"role": "user", "content": "Tell a story of two riders — “briefly”."}]
    text: dict[str, Any] = {"prompt": "first second third"}
    return {
        "model": "target",
        "max_tokens": 16,
        "temperature": 0,
        **(text if path == TEXT else {"messages": story}),
        **options,
    }


def alike(data: bytes) -> bytes:
    """An answer without what differs from one to the next."""
    return re.sub(rb'pace-[0-9a-f]{32}|"created":\d+|chatcmpl-tool-[0-9a-f]+', b"", data)


LIKELIEST: dict[str, Any] = {"temperature": 0.5, "top_p": 1e-6}
"""vLLM gives several replies only where it samples: here always the same.

Not `top_k`, which ends vLLM 0.32's CPU engine as soon as it speculates and a step has no drafts.
"""


def alike_answers(
    stack: Stack, path: str, body: dict[str, Any], *, session: str
) -> tuple[bytes, bytes]:
    """What a client gets without and with capture.

    On a busy machine vLLM sends the tokens of two steps in one chunk now and then: asked again
    until both answers have as many chunks of the same sizes, a few times at most.
    """
    for _ in range(8):
        bare, captured = (
            alike(post(proxy, path, body, session)[0]) for proxy in (stack.bare, stack.capturing)
        )
        sizes = [sorted(map(len, data.split(b"\n\n"))) for data in (bare, captured)]
        if sizes[0] == sizes[1]:
            break
    return bare, captured


STREAMS: list[dict[str, Any]] = [
    {"stream": True},
    {"stream": True, "stream_options": {"include_usage": True}},
    {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
]
CASES: list[tuple[str, dict[str, Any]]] = [
    *((path, options) for path in (CHAT, TEXT) for options in ({}, *STREAMS)),
    (CHAT, {"logprobs": True, "top_logprobs": 2}),
    (CHAT, {"stream": True, "logprobs": True, "top_logprobs": 2}),
    (TEXT, {"stream": True, "logprobs": 2}),
    (CHAT, {"n": 2, **LIKELIEST}),
    (CHAT, {"n": 2, "stream": True, **LIKELIEST}),
    (TEXT, {"prompt": ["one two", "three four"], "n": 2, **LIKELIEST}),
    (TEXT, {"prompt": [1, 2, 3, 4], "return_token_ids": False}),
    (TEXT, {"echo": True}),
    (CHAT, {"stop": ["e"], "stream": True}),
    (CHAT, {"return_token_ids": True, "stream": True}),
]


@pytest.mark.parametrize(("path", "options"), CASES, ids=str)
def test_a_client_of_vllm_gets_the_bytes_it_would_have_got(
    stack: Stack, path: str, options: dict[str, Any]
) -> None:
    """Not a byte differs from an answer that nobody recorded."""
    bare, captured = alike_answers(stack, path, asking(path, **options), session="bytes")
    if options.get("n") and options.get("stream"):  # vLLM's own order of the replies' chunks varies
        assert sorted(captured.split(b"\n\n")) == sorted(bare.split(b"\n\n"))
    else:
        assert captured == bare


def test_chunks_that_ids_alone_cause_are_left_out(stack: Stack) -> None:
    """While a tool call's text is held back vLLM sends chunks for ids only: clients see none."""
    body = asking(
        CHAT,
        tools=[TOOL],
        stream=True,
        max_tokens=80,
        structured_outputs={"choice": [SAID_CALL]},
    )
    asked, _ = post(stack.bare, CHAT, body | {"return_token_ids": True}, "tools")
    bare, captured = alike_answers(stack, CHAT, body, session="tools")
    assert asked.count(b"\n\n") > bare.count(b"\n\n")
    assert b'"name":"ride"' in bare.replace(b" ", b"")
    assert captured == bare
    _, request_id = post(stack.capturing, CHAT, body, "tools")
    wait_until(lambda: request_id in ids_of(stack))
    [record] = [r for r in all_recorded(stack) if r.request_id == request_id]
    told = b"".join(re.findall(rb'"token_ids":(\[[^]]*\])', asked)).replace(b"][", b",")
    said = json.loads(told.replace(b"[,", b"[").replace(b",]", b"]"))
    assert record.token_ids[-len(said) :].tolist() == said


def all_recorded(stack: Stack) -> list[Any]:
    return wait_recorded(stack.redis.url, stack.model, "local")


def ids_of(stack: Stack) -> list[str]:
    return [record.request_id for record in all_recorded(stack)]


def test_worker_and_proxy_record_one_request_once_and_alike(stack: Stack) -> None:
    """Whichever is first, Redis holds one record, and its tokens are the other's."""
    cases: list[tuple[str, dict[str, Any]]] = [
        (CHAT, {"stream": True}),
        (TEXT, {}),
        (CHAT, {"n": 2, **LIKELIEST}),
        (TEXT, {"prompt": ["one two", "three four"]}),
        (CHAT, {"stop": ["e"], "stream": True}),
    ]
    expected: list[str] = []
    for number, (path, options) in enumerate(cases):
        _, request_id = post(stack.both, path, asking(path, **options), f"both-{number}")
        expected.append(request_id)
        if "n" in options:
            expected.append(f"{request_id}.0.1")
        if "prompt" in options:
            expected.append(f"{request_id}.1.0")
    counted = "paceline_journal_events_total"

    def settled() -> float:
        done = [
            metric(stack.both, counted, event=event) for event in ("published", "refused_duplicate")
        ]
        return sum(done)

    wait_until(lambda: settled() == len(expected))
    wait_until(lambda: set(expected) <= set(ids_of(stack)))
    time.sleep(1)  # the worker's own are published by now
    found = [r for r in all_recorded(stack) if r.session.startswith("generic:both")]
    assert sorted(record.request_id for record in found) == sorted(expected)
    # who was second has read and said the same: the plain engine's answers tell
    for number, (path, options) in enumerate(cases[:2]):
        asked, _ = post(stack.bare, path, asking(path, **options, return_token_ids=True), "x")
        told = b"".join(re.findall(rb'"token_ids":(\[[^]]*\])', asked)).replace(b"][", b",")
        [record] = [r for r in found if r.session == f"generic:both-{number}"]
        assert record.token_ids[record.num_prompt :].tolist() == json.loads(told)


def test_a_worker_that_never_served_it_drafts_what_the_proxy_recorded(stack: Stack) -> None:
    """The plain engine answers, the proxy records, the engine with our worker drafts it."""
    body = asking(TEXT, prompt="alpha beta gamma delta", max_tokens=24)
    _, request_id = post(stack.capturing, TEXT, body, "seed")
    wait_until(lambda: request_id in ids_of(stack))
    time.sleep(1)
    before = stack.ours.num_accepted
    with openai.OpenAI(base_url=f"{stack.both.url}/v1", api_key="k", max_retries=0) as api:
        chunks = list(api.completions.create(**body, stream=True))
    assert all(getattr(chunk.choices[0], "token_ids", None) is None for chunk in chunks)
    assert stack.ours.num_accepted - before > 8
