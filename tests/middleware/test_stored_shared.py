"""Responses that engines keep, known to all proxies on one Redis, over real sockets."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from paceline.caches.governance import MemoryGovernor
from paceline.caches.journal_client import RedisAddress
from paceline.policies.tenants import hash_key
from redis_server import RedisServer

pytestmark = [pytest.mark.redis]

RESPONSES = "/v1/responses"
Engines = Callable[..., Any]
Proxies = Callable[..., Any]


async def keep(request: Any, _reader: Any, writer: Any) -> None:
    """As an engine that keeps responses: it tells of any id, whoever asks."""
    name = request.path.rpartition("/")[2] if request.method == "GET" else "?"
    told = {"id": name, "object": "response", "status": "completed", "output": []}
    if request.method == "POST":
        told["id"] = request.json["request_id"]
    data = json.dumps(told).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    writer.write(head % len(data) + data)


def ask(
    proxy: Any, path: str = RESPONSES, *, key: str = "red", body: Any = None
) -> tuple[int, Any]:
    address = proxy.url.removeprefix("http://")
    with closing(http.client.HTTPConnection(address, timeout=20)) as connection:
        sent = None if body is None else json.dumps({"model": "m", "input": "hi"} | body)
        connection.request("GET" if sent is None else "POST", path, sent, {"x-api-key": key})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


@pytest.fixture
def settings(tmp_path: Path, redis_server: RedisServer) -> dict[str, Any]:
    """Of proxies that share a Redis."""
    policy = tmp_path / "policy.yaml"
    tenants = [{"name": name, "keys": [hash_key(name)]} for name in ("red", "blue")]
    policy.write_text(json.dumps({"tenants": tenants}))
    return {"policy_file": policy, "limits": {"redis_url": redis_server.url}}


def test_another_proxy_leads_its_tenant_to_the_engine_that_has_it(
    engines: Engines, proxies: Proxies, settings: dict[str, Any]
) -> None:
    """To read it and to go on from it, in its session; to any other tenant it does not exist."""
    pair = [engines(keep), engines(keep)]
    urls = [engine.url for engine in pair]
    first, second = proxies(*urls, **settings), proxies(*urls, **settings)
    status, told = ask(first, body={"prompt_cache_key": "ride"})
    assert status == 200
    keeper = next(engine for engine in pair if engine.seen)
    keeper.seen.clear()
    path = f"{RESPONSES}/{told['id']}"
    for proxy in (first, second):
        assert ask(proxy, path)[0] == 200
        assert ask(proxy, path, key="blue")[0] == 404
        assert ask(proxy, body={"previous_response_id": told["id"]}, key="blue")[0] == 404
    assert [request.path for request in keeper.seen] == [path, path]
    assert ask(second, body={"previous_response_id": told["id"]})[0] == 200
    assert keeper.seen[-1].json["vllm_xargs"]["paceline_session"] == "key:ride"


def test_one_that_is_not_to_be_kept_is_known_to_nobody(
    engines: Engines, proxies: Proxies, settings: dict[str, Any]
) -> None:
    """With ``store: false``, and after its tenant was forgotten."""
    engine = engines(keep)
    first, second = proxies(engine.url, **settings), proxies(engine.url, **settings)
    _, unkept = ask(first, body={"store": False})
    _, kept = ask(first, body={})
    assert ask(second, f"{RESPONSES}/{unkept['id']}")[0] == 404
    assert ask(second, f"{RESPONSES}/{kept['id']}")[0] == 200
    with closing(RedisAddress(settings["limits"]["redis_url"]).connect()) as client:
        MemoryGovernor(client).forget(tenant="red")
    assert ask(second, f"{RESPONSES}/{kept['id']}")[0] == 404


def test_while_redis_is_away_a_proxy_knows_its_own(
    engines: Engines, proxies: Proxies, settings: dict[str, Any], redis_server: RedisServer
) -> None:
    """Responses are made and read as ever; of others' it is not said that they do not exist."""
    engine = engines(keep)
    first, second = proxies(engine.url, **settings), proxies(engine.url, **settings)
    _, before = ask(first, body={})
    redis_server.freeze()
    status, meanwhile = ask(first, body={})
    assert status == 200
    for told in (before, meanwhile):
        assert ask(first, f"{RESPONSES}/{told['id']}")[0] == 200
        status, error = ask(second, f"{RESPONSES}/{told['id']}")
        assert (status, error["error"]["code"]) == (503, "responses_unavailable")
    redis_server.thaw()


def test_an_engine_that_is_no_upstream_any_more_has_nothing(
    engines: Engines, proxies: Proxies, settings: dict[str, Any]
) -> None:
    """404, as after its end."""
    engine, other = engines(keep), engines(keep)
    first = proxies(engine.url, **settings)
    second = proxies(other.url, **settings, e0={"name": "another"})
    _, told = ask(first, body={})
    assert ask(second, f"{RESPONSES}/{told['id']}")[0] == 404
    assert not other.seen
