"""A real engine behind a real proxy: what a client is told is what the engine counts."""

from __future__ import annotations

import http.client
import json
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any

import pytest

from embedded_server import MODEL, EmbeddedServer
from paceline.adapters.decisions import DECISIONS_PATH
from paceline.middleware.config import make_config
from paceline.middleware.server import RunningProxy, running_proxy
from paceline.policies.tenants import hash_key
from small_chats import write_target
from waiting import wait_until

pytestmark = [pytest.mark.timeout(300)]

TEXT = "/v1/completions"
EXPLAIN = {"x-paceline-explain": "on"}
COUNTED = {"rounds": "rounds", "draft_tokens": "draft-tokens", "accepted_tokens": "accepted-tokens"}


@dataclass
class Stack:
    """A proxy in front of one engine that draws drafts from memory and from a twin of itself."""

    engine: EmbeddedServer
    proxy: RunningProxy

    def counters(self) -> dict[str, float]:
        return {
            name: self.engine.metric(f"paceline_engine_{name}_total")
            for name in (*COUNTED, "model_requests", "cut_tokens")
        }

    def record(self, request_id: str) -> Any:
        url = f"{self.engine.url}{DECISIONS_PATH}{request_id}"
        with urllib.request.urlopen(url, timeout=20) as answer:  # noqa: S310  our own
            return json.loads(answer.read())


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything, started once."""
    folder = tmp_path_factory.mktemp("explaining")
    # a model that never ends a reply by itself: the tests say how long it is
    model = write_target(folder / "target", eos_token_id=96)
    policy = folder / "policy.yaml"
    tenants = [{"name": name, "keys": [hash_key(name)]} for name in ("red", "blue")]
    policy.write_text(json.dumps({"tenants": tenants}))
    with ExitStack() as exits:
        engine = EmbeddedServer(model, folder, "engine", "--always-draft", "--drafter", str(model))
        engine.start()
        exits.callback(engine.stop)
        engine.wait_ready()
        config = make_config(
            listen={"port": 0},
            upstreams=[{"name": "e", "url": engine.url, "decisions_url": engine.url}],
            policy_file=policy,
            health_interval_seconds=0.1,
        )
        proxy = exits.enter_context(running_proxy(config))
        wait_until(lambda: proxy.proxy.ready)
        yield Stack(engine, proxy)


def post(
    stack: Stack, text: str, headers: dict[str, str] = EXPLAIN, key: str = "red", **options: Any
) -> tuple[dict[str, str], bytes]:
    body = {"model": MODEL, "max_tokens": 40, "temperature": 0, "prompt": text, **options}
    connection = http.client.HTTPConnection(stack.proxy.url.removeprefix("http://"), timeout=60)
    with closing(connection):
        connection.request("POST", TEXT, json.dumps(body), {"x-api-key": key, **headers})
        response = connection.getresponse()
        data = response.read()
        assert response.status == 200, data
        return dict(response.getheaders()), data


def get(stack: Stack, request_id: str, key: str = "red") -> tuple[int, Any]:
    connection = http.client.HTTPConnection(stack.proxy.url.removeprefix("http://"), timeout=60)
    with closing(connection):
        connection.request("GET", DECISIONS_PATH + request_id, headers={"x-api-key": key})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


@pytest.mark.parametrize("sources", ["memory", "model", "memory,model"])
def test_a_whole_answer_says_what_the_engine_counted(stack: Stack, sources: str) -> None:
    """Its numbers are what the engine's own counters grew by, and only those may draft who do."""
    text = f"w5 w9 w{len(sources)} w5 w9"
    headers = {**EXPLAIN, "x-paceline-draft-sources": sources}
    post(stack, text, headers)  # memory knows the reply from now on
    before = stack.counters()
    head, _ = post(stack, text, headers)
    grown = {name: value - before[name] for name, value in stack.counters().items()}
    assert {name: float(head[f"x-paceline-{shown}"]) for name, shown in COUNTED.items()} == {
        name: grown[name] for name in COUNTED
    }
    assert 0 < grown["accepted_tokens"] <= grown["draft_tokens"]
    named = {part.partition("=")[0] for part in head["x-paceline-draft-sources"].split(", ")}
    assert ("model" in named) <= ("model" in sources)
    assert (named - {"model"} != set()) <= ("memory" in sources)
    record = stack.record(head["x-paceline-request-id"])
    assert record["model_rounds"] == grown["model_requests"]
    assert record["cut_tokens"] == grown["cut_tokens"]
    assert record["reason"] == head["x-paceline-reason"]
    assert ("policy" in record["limited_by"]) == (sources != "memory,model")
    assert "rounds; " in record["reason"]


def test_the_answer_is_the_one_without_explanation(stack: Stack) -> None:
    """Asking for an explanation changes neither what is said nor how."""
    explained = json.loads(post(stack, "w8 w7 w8")[1])
    head, plain = post(stack, "w8 w7 w8", {})
    assert json.loads(plain)["choices"] == explained["choices"]
    assert not any(name.startswith("x-paceline") for name in head)


def test_a_stream_can_be_asked_for_afterwards(stack: Stack) -> None:
    """By the tenant whose it is: the engine's record; others get what unknown ids get."""
    head, data = post(stack, "w3 w4 w3 w4", stream=True)
    assert b"[DONE]" in data
    assert not any(name.startswith("x-paceline-rounds") for name in head)
    request_id = head["x-paceline-request-id"]
    status, told = get(stack, request_id)
    assert (status, told) == (200, stack.record(request_id))
    assert told["is_finished"]
    assert told["rounds"] > 0
    assert "w3" not in json.dumps(told)
    other, unknown = get(stack, request_id, "blue"), get(stack, "pace-" + "0" * 32, "blue")
    assert other == unknown
    assert other[0] == 404


def test_a_request_that_runs_can_be_looked_at(stack: Stack) -> None:
    """Its record grows while its stream is read."""
    connection = http.client.HTTPConnection(stack.proxy.url.removeprefix("http://"), timeout=60)
    body = {"model": MODEL, "max_tokens": 200, "temperature": 0.9, "prompt": "w1", "stream": True}
    with closing(connection):
        connection.request("POST", TEXT, json.dumps(body), {"x-api-key": "red", **EXPLAIN})
        response = connection.getresponse()
        response.readline()
        request_id = response.headers["x-paceline-request-id"]
        status, told = get(stack, request_id)
        assert (status, told["request_id"]) == (200, request_id)
        response.read()
    assert get(stack, request_id)[1]["rounds"] > told["rounds"] or told["is_finished"]


def test_who_switched_drafts_off_is_named(stack: Stack) -> None:
    """By the request's header, which narrows the policy, or by the client's own field."""
    head, _ = post(stack, "w1 w2", {**EXPLAIN, "x-paceline-speculation": "off"})
    assert head["x-paceline-draft-sources"] == "none"
    assert head["x-paceline-draft-tokens"] == "0"
    assert head["x-paceline-rounds"] == "39"
    assert head["x-paceline-reason"] == "nothing may draft: policy says so"
    head, _ = post(stack, "w1 w2", vllm_xargs={"draft_tokens": 0})
    assert head["x-paceline-reason"] == "nothing may draft: client says so"
