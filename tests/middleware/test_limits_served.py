"""A tenant with a token limit gets a real engine's bytes and is charged what it says was used."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from captured import metric
from embedded_server import MODEL, EmbeddedServer
from paceline.middleware.config import make_config
from paceline.middleware.server import RunningProxy, running_proxy
from paceline.policies.tenants import hash_key
from redis_server import RedisServer
from waiting import wait_until

pytestmark = [pytest.mark.model, pytest.mark.redis, pytest.mark.timeout(300)]

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
STORY: Any = [{"role": "user", "content": "Tell me of two riders — in one “sentence”."}]
TOKENS = "paceline_proxy_limit_tokens_total"


@dataclass
class Stack:
    """Proxies in front of one engine: with limits, with limits and capture."""

    plain: RunningProxy
    capturing: RunningProxy


@pytest.fixture(scope="module")
def stack(target_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything, started once."""
    folder = tmp_path_factory.mktemp("limits")
    policy = folder / "policy.yaml"
    limits = {"tokens_per_minute": 10**9, "requests_per_minute": 10**6}
    tenants = [
        {"name": "free", "keys": [hash_key("free")]},
        {"name": "metered", "keys": [hash_key("metered")], "limits": limits},
    ]
    policy.write_text(json.dumps({"tenants": tenants}))
    redis = RedisServer(folder)
    with ExitStack() as exits:
        redis.start()
        exits.callback(redis.kill)
        options = ("--no-speculation", "--kept-mib", "0")
        engine = EmbeddedServer(target_folder, folder, "plain", *options)
        engine.start()
        exits.callback(engine.stop)
        engine.wait_ready()

        def proxy(**settings: Any) -> RunningProxy:
            config = make_config(
                listen={"port": 0},
                upstreams=[{"name": "e", "url": engine.url}],
                policy_file=policy,
                health_interval_seconds=0.1,
                **settings,
            )
            running = exits.enter_context(running_proxy(config))
            wait_until(lambda: running.proxy.ready)
            return running

        capture = {"redis_url": redis.url, "model": MODEL, "tokenizer": target_folder}
        yield Stack(proxy(), proxy(capture=capture))


def asking(path: str, **options: Any) -> dict[str, Any]:
    text: dict[str, Any] = {"prompt": "One, two,"} if path == TEXT else {"messages": STORY}
    return {"model": MODEL, "max_tokens": 12, "temperature": 0, **text, **options}


def post(proxy: RunningProxy, path: str, body: dict[str, Any], key: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=60)
    connection.request("POST", path, json.dumps(body), {"x-api-key": key})
    with closing(connection):
        response = connection.getresponse()
        return response.status, response.read()


def without_ids_and_times(data: bytes) -> bytes:
    return re.sub(rb'pace-[0-9a-f]{32}|"created": ?\d+', b"", data)


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stream": True},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        {"stream": True, "return_token_ids": True},
        {"stream": True, "stop": ["e"]},
    ],
    ids=str,
)
def test_a_client_gets_the_bytes_it_would_have_got(
    stack: Stack, path: str, options: dict[str, Any]
) -> None:
    """Without limits, with them, and with capture besides: not a byte differs; all is charged."""
    body = asking(path, **options)
    status, free = post(stack.plain, path, body, "free")
    assert status == 200
    told = json.loads(post(stack.plain, path, {**body, "stream": False} | NO_OPTIONS, "free")[1])
    for proxy in (stack.plain, stack.capturing):
        before = metric(proxy, TOKENS)
        _, metered = post(proxy, path, body, "metered")
        assert without_ids_and_times(metered) == without_ids_and_times(free)
        total = told["usage"]["total_tokens"]
        wait_until(lambda p=proxy, b=before, t=total: metric(p, TOKENS) == b + t)


NO_OPTIONS: dict[str, Any] = {"stream_options": None}


def test_who_leaves_a_real_stream_early_is_charged_for_a_part(stack: Stack) -> None:
    """More than the prompt, less than what would have been said."""
    body = asking(CHAT, stream=True, max_tokens=400)
    prompt = json.loads(post(stack.plain, CHAT, asking(CHAT), "free")[1])["usage"]["prompt_tokens"]
    before = metric(stack.plain, TOKENS)
    connection = http.client.HTTPConnection(stack.plain.url.removeprefix("http://"), timeout=60)
    connection.request("POST", CHAT, json.dumps(body), {"x-api-key": "metered"})
    response = connection.getresponse()
    for _ in range(9):
        assert response.readline()
    assert connection.sock is not None
    connection.sock.close()
    response.close()
    wait_until(lambda: metric(stack.plain, TOKENS) > before)
    assert prompt + 2 <= metric(stack.plain, TOKENS) - before < prompt + 400
