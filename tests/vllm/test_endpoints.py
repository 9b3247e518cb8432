"""A real vLLM with all its routes on, behind a proxy: what passes, as whose, and what does not."""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import claude_code
from captured import metric, wait_recorded
from paceline.caches import ModelFingerprint
from paceline.caches.tokenizer import TextTokenizer
from paceline.middleware.config import make_config
from paceline.middleware.endpoints import BODIES, CANCEL, MODELS_PATH, STORED
from paceline.middleware.server import RunningProxy, running_proxy
from paceline.policies.tenants import hash_key
from redis_server import RedisServer
from vllm_server import VllmServer
from waiting import wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.redis, pytest.mark.timeout(900)]

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
SAY = [{"role": "user", "content": "Count from one to ten."}]
ASKS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": SAY, "max_tokens": 12},
    "/v1/completions": {"prompt": "one two three", "max_tokens": 12},
    MESSAGES: {"messages": SAY, "max_tokens": 12},
    RESPONSES: {"input": SAY, "max_output_tokens": 12},
}
SERVED = {
    *(("post", path) for path in BODIES),
    ("get", MODELS_PATH),
    ("get", STORED.route.replace("{id}", "{response_id}")),
    ("post", CANCEL.route.replace("{id}", "{response_id}")),
}
"""What is passed on; /v1/embeddings is no route of a vLLM that generates."""


def name_of(path: str) -> str:
    """A path's own tenant."""
    return path.strip("/").replace("/", "-")


@dataclass
class Stack:
    """An engine with our worker, and a proxy that records nothing itself."""

    engine: VllmServer
    redis: RedisServer
    proxy: RunningProxy
    model: ModelFingerprint


@pytest.fixture(scope="module")
def stack(target_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything, started once."""
    folder = tmp_path_factory.mktemp("endpoints")
    policy = folder / "policy.yaml"
    tenants = [{"name": name, "keys": [hash_key(name)]} for name in ("red", "blue")]
    for path in ASKS:
        name = name_of(path)
        tenants.append({"name": name, "keys": [hash_key(name)]})
        tenants[-1]["limits"] = {"tokens_per_minute": 10**9}  # type: ignore[assignment]
    policy.write_text(json.dumps({"tenants": tenants}))
    redis = RedisServer(folder)
    engine = VllmServer(
        target_folder,
        redis.url,
        folder,
        "all",
        *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        VLLM_SERVER_DEV_MODE="1",
        VLLM_ALLOW_RUNTIME_LORA_UPDATING="1",
        VLLM_ENABLE_RESPONSES_API_STORE="1",
    )
    with ExitStack() as exits:
        redis.start()
        exits.callback(redis.kill)
        engine.start()
        exits.callback(engine.stop)
        engine.wait_ready()
        config = make_config(
            listen={"port": 0},
            upstreams=[
                {"name": "all", "url": engine.url, "decisions_url": engine.worker_url},
            ],
            policy_file=policy,
        )
        proxy = exits.enter_context(running_proxy(config))
        wait_until(lambda: proxy.proxy.ready)
        model = ModelFingerprint("target", TextTokenizer(str(target_folder)).digest)
        yield Stack(engine, redis, proxy, model)


def ask(
    stack: Stack,
    path: str,
    body: dict[str, Any] | None = None,
    *,
    key: str = "red",
    method: str = "POST",
    headers: dict[str, str] | None = None,
) -> tuple[int, bytes, dict[str, str]]:
    address = stack.proxy.url.removeprefix("http://")
    with closing(http.client.HTTPConnection(address, timeout=120)) as connection:
        sent = None if body is None else json.dumps({"model": "target", "temperature": 0} | body)
        connection.request(method, path, sent, {"x-api-key": key} | (headers or {}))
        response = connection.getresponse()
        return response.status, response.read(), dict(response.getheaders())


def operations(stack: Stack) -> set[tuple[str, str]]:
    """All that the engine serves, as it says itself."""
    with urllib.request.urlopen(f"{stack.engine.url}/openapi.json", timeout=30) as answer:  # noqa: S310  our own
        paths = json.loads(answer.read())["paths"]
    return {(method, path) for path, methods in paths.items() for method in methods}


def test_of_all_routes_only_those_listed_are_passed_on(stack: Stack) -> None:
    """Each route of this vLLM is either on our list, or ends at the proxy."""
    known = operations(stack)
    for path in ("/sleep", "/collective_rpc", "/reset_prefix_cache", "/v1/load_lora_adapter"):
        assert ("post", path) in known
    assert len(known) > 40
    assert known >= SERVED - {("post", "/v1/embeddings")}
    own = {("get", "/health"), ("get", "/metrics")}
    for method, path in sorted(known - SERVED - own):
        filled = re.sub(r"{\w+}", "x", path)
        status, data, _ = ask(stack, filled, {}, method=method.upper())
        assert status in (404, 405), (method, path)
        assert b"not served here" in data or b"method_not_allowed" in data, (method, path)
    assert ask(stack, "/metrics", method="GET")[1].startswith(b"# HELP p")  # the proxy's own


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ASKS)
def test_every_endpoint_is_counted_as_vllm_tells_it(
    stack: Stack, path: str, *, stream: bool
) -> None:
    """What a limit counts is what vLLM's own counters grew by."""
    name = name_of(path)
    counters = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")

    def in_engine() -> float:
        return sum(stack.engine.metric(each) for each in counters)

    def counted() -> float:
        return metric(stack.proxy, "paceline_proxy_limit_tokens_total", tenant=name)

    before = in_engine(), counted()
    status, data, _ = ask(stack, path, ASKS[path] | {"stream": stream}, key=name)
    assert status == 200, data
    wait_until(lambda: counted() > before[1])
    wait_until(lambda: in_engine() - before[0] == counted() - before[1])


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
def test_the_worker_knows_whose_they_are(stack: Stack, path: str) -> None:
    """Recorded as their tenant's under our id, drafted for from its memory, and explained."""
    body = ASKS[path] | {"max_tokens": 24, "max_output_tokens": 24}
    explain = {"x-paceline-explain": "on", "x-paceline-workload": f"w{len(path)}"}
    first = ask(stack, path, body, headers=explain)
    request_id = first[2]["x-paceline-request-id"]
    records = wait_recorded(stack.redis.url, stack.model, "red")
    wait_until(
        lambda: request_id in [r.request_id for r in wait_recorded(
            stack.redis.url, stack.model, "red")]
    )  # fmt: skip
    record = next(
        r
        for r in wait_recorded(stack.redis.url, stack.model, "red", len(records))
        if r.request_id == request_id
    )
    assert record.workload == f"w{len(path)}"
    second = ask(stack, path, body, headers=explain)
    assert int(second[2]["x-paceline-accepted-tokens"]) > 0
    assert json.loads(second[1])["id"].endswith(second[2]["x-paceline-request-id"])
    quiet = ask(stack, path, body, key="blue", headers=explain)
    assert text_of(quiet[1]) == text_of(second[1]) == text_of(first[1])


def text_of(data: bytes) -> str:
    """What an answer of either API says."""
    told = json.loads(data)
    content = told["content"] if "content" in told else told["output"][0]["content"]
    return str(content[0]["text"])


def test_a_stored_response_is_its_tenants(stack: Stack) -> None:
    """vLLM keeps it for anybody; the proxy gives it to its tenant alone, who can go on from it."""
    body = ASKS[RESPONSES] | {"background": True, "max_output_tokens": 400}
    made = json.loads(ask(stack, RESPONSES, body)[1])
    own = f"{RESPONSES}/{made['id']}"
    assert json.loads(ask(stack, own, method="GET")[1])["status"] in ("queued", "in_progress")
    for path, method in ((own, "GET"), (f"{own}/cancel", "POST")):
        assert ask(stack, path, method=method, key="blue")[0] == 404
    assert json.loads(ask(stack, f"{own}/cancel")[1])["status"] == "cancelled"
    wait_until(lambda: stack.engine.num_running == 0)
    kept = json.loads(ask(stack, RESPONSES, ASKS[RESPONSES] | {"store": True})[1])
    goes_on = {"input": "And on?", "previous_response_id": kept["id"], "max_output_tokens": 4}
    answer = json.loads(ask(stack, RESPONSES, goes_on)[1])
    assert answer["usage"]["input_tokens"] > kept["usage"]["total_tokens"]
    assert ask(stack, RESPONSES, goes_on, key="blue")[0] == 404


def test_claude_codes_requests_are_answered(stack: Stack) -> None:
    """With all their fields, betas and tools: turns, a title held to its schema, and counts."""
    headers = claude_code.HEADERS | {"authorization": "Bearer red"}

    def asked(path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        status, data, _ = ask(stack, path + claude_code.QUERY, body, headers=headers)
        return status, data

    for body in (claude_code.turn(), claude_code.title()):
        status, data = asked(MESSAGES, body)
        assert status == 200, data
        assert data.startswith(b"event: message_start")
        assert b"event: message_stop" in data
        assert b"event: error" not in data
    status, data = asked(f"{MESSAGES}/count_tokens", claude_code.count())
    assert (status, list(json.loads(data))[:1]) == (200, ["input_tokens"])


def test_a_stored_response_is_known_to_all_proxies_on_one_redis(
    stack: Stack, tmp_path: Path
) -> None:
    """Another proxy reads and continues it for its tenant, with what vLLM has kept."""
    policy = tmp_path / "policy.yaml"
    tenants = [{"name": name, "keys": [hash_key(name)]} for name in ("red", "blue")]
    policy.write_text(json.dumps({"tenants": tenants}))
    config = make_config(
        listen={"port": 0},
        upstreams=[{"name": "all", "url": stack.engine.url}],
        policy_file=policy,
        limits={"redis_url": stack.redis.url},
    )
    with running_proxy(config) as first, running_proxy(config) as second:
        for proxy in (first, second):
            wait_until(lambda p=proxy: p.proxy.ready)
        asked = replace(stack, proxy=first)
        told = json.loads(ask(asked, RESPONSES, ASKS[RESPONSES] | {"store": True})[1])
        other, path = replace(stack, proxy=second), f"{RESPONSES}/{told['id']}"
        status, data, _ = ask(other, path, method="GET")
        assert (status, json.loads(data)["output"]) == (200, told["output"])
        assert ask(other, path, method="GET", key="blue")[0] == 404
        more = {"input": "Go on.", "max_output_tokens": 4, "previous_response_id": told["id"]}
        assert ask(other, RESPONSES, more)[0] == 200
        assert ask(other, RESPONSES, more, key="blue")[0] == 404


def test_vllms_refusals_are_told_in_anthropics_words(stack: Stack) -> None:
    """Those of its handlers, and those of its checks before them."""
    unknown = json.loads(ask(stack, MESSAGES, ASKS[MESSAGES] | {"model": "nobody"})[1])
    invalid = json.loads(ask(stack, MESSAGES, {"messages": SAY})[1])
    for error in (unknown, invalid):
        assert error["type"] == "error"
        assert error["error"]["message"]
    assert ask(stack, "/v1/embeddings", {"input": "x"})[0] in (400, 404, 501)


def test_tokens_are_counted_and_told(stack: Stack) -> None:
    """`/tokenize`, `/detokenize` and Anthropic's count agree."""
    chat = json.loads(ask(stack, "/tokenize", {"messages": SAY})[1])
    counted = json.loads(ask(stack, f"{MESSAGES}/count_tokens", {"messages": SAY})[1])
    assert counted["input_tokens"] == chat["count"]
    text = json.loads(ask(stack, "/detokenize", {"tokens": chat["tokens"]})[1])["prompt"]
    assert SAY[0]["content"] in text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
def test_a_client_that_leaves_takes_vllms_work_with_it(
    stack: Stack, path: str, *, stream: bool
) -> None:
    """Its request is no longer running soon after."""
    body = {"model": "target", **ASKS[path], "stream": stream, "ignore_eos": True}
    body |= {"max_tokens": 900, "max_output_tokens": 900}
    connection = http.client.HTTPConnection(stack.proxy.url.removeprefix("http://"), timeout=60)
    connection.request("POST", path, json.dumps(body), {"x-api-key": "blue"})
    if stream:
        assert connection.getresponse().read(9)
    wait_until(lambda: stack.engine.num_running == 1)
    left_at = time.monotonic()
    connection.close()
    wait_until(lambda: stack.engine.num_running == 0)
    assert time.monotonic() - left_at < 5


def test_a_prediction_is_drafted_from_by_the_worker(stack: Stack) -> None:
    """It saves rounds from the first token on, changes nothing, and is told in the usage."""
    path = "/v1/chat/completions"
    say = [{"role": "user", "content": "Tell a short story of a grey heron and a clock."}]
    body = {"messages": say, "max_tokens": 40}
    headers = {"x-paceline-explain": "on", "x-paceline-record": "off"}
    plain = ask(stack, path, body, headers=headers)
    message = json.loads(plain[1])["choices"][0]["message"]
    prediction = {"type": "content", "content": message["content"]}
    predicted = ask(stack, path, body | {"prediction": prediction}, headers=headers)
    answer = json.loads(predicted[1])
    assert answer["choices"][0]["message"]["content"] == message["content"]
    rounds = [int(each[2]["x-paceline-rounds"]) for each in (plain, predicted)]
    assert rounds[1] < rounds[0]
    details = answer["usage"]["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] > 30
    assert details["rejected_prediction_tokens"] < 10
    streamed = body | {"prediction": prediction, "stream": True}
    streamed["stream_options"] = {"include_usage": True}
    data = ask(stack, path, streamed, headers=headers)[1]
    usage = json.loads(data.split(b"\n\n")[-3].removeprefix(b"data: "))["usage"]
    assert usage["completion_tokens_details"]["accepted_prediction_tokens"] > 30
    again = ask(stack, path, body, headers=headers)
    assert int(again[2]["x-paceline-rounds"]) == rounds[0]
    assert "accepted_prediction_tokens" not in again[1].decode()
