"""What a real vLLM is asked for to count tokens is taken out again, and counted rightly."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from captured import metric
from paceline.middleware.config import make_config
from paceline.middleware.server import RunningProxy, running_proxy
from paceline.policies.tenants import hash_key
from redis_server import RedisServer
from vllm_server import VllmServer
from waiting import wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.redis, pytest.mark.timeout(900)]

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TOKENS = "paceline_proxy_limit_tokens_total"
EACH = {"include_usage": True, "continuous_usage_stats": True}


@pytest.fixture(scope="module")
def proxies(
    target_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[RunningProxy]]:
    """One that only counts, and one that records too, in front of one plain vLLM."""
    folder = tmp_path_factory.mktemp("limits")
    policy = folder / "policy.yaml"
    tenants = [
        {"name": "free", "keys": [hash_key("free")]},
        {"name": "metered", "keys": [hash_key("metered")], "limits": {"tokens_per_minute": 10**9}},
    ]
    policy.write_text(json.dumps({"tenants": tenants}))
    redis = RedisServer(folder)
    server = VllmServer(target_folder, None, folder, "plain", "--no-enable-prefix-caching")
    with ExitStack() as exits:
        redis.start()
        exits.callback(redis.kill)
        server.start()
        exits.callback(server.stop)
        server.wait_ready()
        capture = {"redis_url": redis.url, "model": "target", "tokenizer": target_folder}
        made = []
        for settings in ({}, {"capture": capture}):
            config = make_config(
                listen={"port": 0},
                upstreams=[{"name": "plain", "url": server.url}],
                policy_file=policy,
                **settings,
            )
            running = exits.enter_context(running_proxy(config))
            wait_until(lambda r=running: r.proxy.ready)
            made.append(running)
        yield made


def post(proxy: RunningProxy, path: str, body: dict[str, Any], key: str) -> bytes:
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=120)
    with closing(connection):
        connection.request("POST", path, json.dumps(body), {"x-api-key": key})
        response = connection.getresponse()
        data = response.read()
        assert response.status == 200, data
        return data


def alike(data: bytes) -> bytes:
    """An answer without what differs from one to the next."""
    return re.sub(rb'pace-[0-9a-f]{32}|"created":\d+', b"", data)


def sizes(data: bytes) -> list[int]:
    return sorted(map(len, data.split(b"\n\n")))


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stream": True},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"stream": True, "stream_options": EACH},
        {"stream": True, "return_token_ids": True},
        {"stream": True, "n": 2, "temperature": 0.5, "top_p": 1e-6},
    ],
    ids=str,
)
def test_a_client_gets_the_bytes_it_would_have_got(
    proxies: list[RunningProxy], path: str, options: dict[str, Any]
) -> None:
    """Its fingerprint included; what is counted is what a whole answer says was used."""
    story: Any = [{"role": "user", "content": "Tell a story of two riders — “briefly”."}]
    text: dict[str, Any] = {"prompt": "first second third"} if path == TEXT else {"messages": story}
    body = {"model": "target", "max_tokens": 16, "temperature": 0, **text, **options}
    whole = {name: value for name, value in body.items() if not name.startswith("stream")}
    total = json.loads(post(proxies[0], path, whole, "free"))["usage"]["total_tokens"]
    for proxy in proxies:
        # on a busy machine vLLM sends two steps' tokens in one chunk now and then
        for _ in range(8):
            before = metric(proxy, TOKENS)
            free = alike(post(proxies[0], path, body, "free"))
            metered = alike(post(proxy, path, body, "metered"))
            wait_until(lambda p=proxy, b=before: metric(p, TOKENS) == b + total)
            if "n" in options:  # vLLM's fingerprint is put back where one reply ends the stream
                free = re.sub(rb',"system_fingerprint":"[^"]*"', b"", free)
            if sizes(free) == sizes(metered):
                break
        assert sorted(metered.split(b"\n\n")) == sorted(free.split(b"\n\n"))
        assert "n" in options or metered == free
        assert "n" in options or not options.get("stream") or b"system_fingerprint" in metered
