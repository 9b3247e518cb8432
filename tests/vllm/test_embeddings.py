"""A real vLLM that serves vectors, behind a proxy: bytes, refusals, limits and SDKs."""

from __future__ import annotations

import base64
import http.client
import json
import re
import struct
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from captured import metric
from paceline.middleware.config import make_config
from paceline.middleware.server import RunningProxy, running_proxy
from paceline.policies.tenants import hash_key
from schemathesis_run import run_schemathesis
from sdk_clients import ROOT, SdkClients
from served_engine import served_engine
from vllm_server import VllmServer
from waiting import wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.sdks, pytest.mark.timeout(900)]

EMBEDDINGS, CHAT = "/v1/embeddings", "/v1/chat/completions"
TOKENS = "paceline_proxy_limit_tokens_total"
SDKS = ROOT / "tests" / "sdks"
TEXTS = ["A grey heron waits.", "The clock on the wall is slow."]
IDS = [[504, 3224], [1, 2, 3]]
SAY = [{"role": "user", "content": "Say hello."}]
MANY = [f"Heron {i}." for i in range(90)]
"""More than a head of 8 KB has room to tell of."""
FORMS: dict[str, dict[str, Any]] = {
    "text": {"input": TEXTS[0]},
    "floats": {"input": TEXTS, "encoding_format": "float"},
    "base64": {"input": TEXTS, "encoding_format": "base64"},
    "half-big": {
        "input": TEXTS,
        "encoding_format": "base64",
        "embed_dtype": "float16",
        "endianness": "big",
    },
    "ids": {"input": IDS[0]},
    "lists-of-ids": {"input": IDS, "encoding_format": "base64"},
    "chat": {"messages": SAY},
    "cut": {"input": TEXTS, "truncate_prompt_tokens": 3, "user": "rider"},
    "bytes": {"input": TEXTS, "encoding_format": "bytes"},
    "many-bytes": {"input": MANY, "encoding_format": "bytes"},
}
WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "dimensions": (EMBEDDINGS, {"input": TEXTS, "dimensions": 8}),
    "no-dimensions": (EMBEDDINGS, {"input": TEXTS, "dimensions": 0}),
    "no-input": (EMBEDDINGS, {}),
    "no-texts": (EMBEDDINGS, {"input": []}),
    "no-token": (EMBEDDINGS, {"input": [10**6]}),
    "form": (EMBEDDINGS, {"input": TEXTS, "encoding_format": "hex"}),
    "too-long": (EMBEDDINGS, {"input": [5] * 2000}),
    "model": (EMBEDDINGS, {"input": TEXTS, "model": "nobody"}),
    "chat": (CHAT, {"messages": SAY}),
    "streamed-chat": (CHAT, {"messages": SAY, "stream": True}),
    "completion": ("/v1/completions", {"prompt": "One, two,"}),
}


@dataclass
class Stack:
    """An engine of vectors, a proxy before it, and scripts that ask the proxy."""

    engine: VllmServer
    proxy: RunningProxy
    clients: SdkClients


@pytest.fixture(scope="module")
def stack(target_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything, started once."""
    folder = tmp_path_factory.mktemp("embeddings")
    policy = folder / "policy.yaml"
    limits = {"free": None, "metered": 10**9, "poor": 40}
    tenants: list[dict[str, Any]] = [{"name": name, "keys": [hash_key(name)]} for name in limits]
    for tenant in tenants:
        if limits[tenant["name"]] is not None:
            tenant["limits"] = {"tokens_per_minute": limits[tenant["name"]]}
    policy.write_text(json.dumps({"tenants": tenants}))
    engine = VllmServer(
        target_folder, None, folder, "vectors", "--runner", "pooling", "--convert", "embed"
    )
    with ExitStack() as exits:
        engine.start()
        exits.callback(engine.stop)
        engine.wait_ready()
        config = make_config(
            listen={"port": 0},
            upstreams=[{"name": "vectors", "url": engine.url}],
            policy_file=policy,
            health_interval_seconds=0.1,
        )
        proxy = exits.enter_context(running_proxy(config))
        wait_until(lambda: proxy.proxy.ready)
        metrics_url = f"{engine.url}/metrics"
        clients = SdkClients(f"{proxy.url}/v1", metrics_url, folder, model="target", key="metered")
        yield Stack(engine, proxy, clients)


@dataclass
class Answer:
    """What came, without what differs from one request to the next."""

    status: int
    body: bytes
    kind: str
    head: str

    @property
    def num_tokens(self) -> int:
        """What its usage says, in the body or in the head."""
        told = json.loads(self.head or self.body)
        return int(told["usage"]["prompt_tokens"])


def ask(url: str, path: str, body: dict[str, Any], key: str = "free") -> Answer:
    with closing(http.client.HTTPConnection(url.removeprefix("http://"), timeout=120)) as link:
        link.request(
            "POST",
            path,
            json.dumps({"model": "target"} | body),
            {"content-type": "application/json", "authorization": f"Bearer {key}"},
        )
        response = link.getresponse()
        return Answer(
            response.status,
            without_own(response.read()),
            response.getheader("content-type") or "",
            without_own((response.getheader("metadata") or "").encode()).decode(),
        )


def without_own(told: bytes) -> bytes:
    """Without the request's id, its time, and how many fields an error says that it had."""
    told = re.sub(rb'"embd-[^"]*"', b'""', told)
    return re.sub(rb'(?<="created":) ?\d+|(?<=<dict of )\d+', b"0", told)


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_is_vllms_and_what_it_read_is_charged(stack: Stack, form: str) -> None:
    """Byte for byte a direct one's, with limits and without; counted as vLLM counts."""
    body = FORMS[form]
    direct = ask(stack.engine.url, EMBEDDINGS, body)
    assert direct.status == 200, direct.body
    assert ask(stack.proxy.url, EMBEDDINGS, body) == direct
    before = metric(stack.proxy, TOKENS, tenant="metered")
    in_engine = stack.engine.metric("vllm:prompt_tokens_total")
    assert ask(stack.proxy.url, EMBEDDINGS, body, "metered") == direct
    wait_until(lambda: metric(stack.proxy, TOKENS, tenant="metered") > before)
    charged = metric(stack.proxy, TOKENS, tenant="metered") - before
    assert charged == direct.num_tokens
    wait_until(lambda: stack.engine.metric("vllm:prompt_tokens_total") == in_engine + charged)


@pytest.mark.parametrize("name", WRONG)
def test_what_vllm_refuses_is_told_in_its_words(stack: Stack, name: str) -> None:
    """Also that an engine of vectors neither chats nor completes; nothing is charged.

    Where vLLM tells how many fields a request has, ours is one of them.
    """
    path, body = WRONG[name]
    direct = ask(stack.engine.url, path, body)
    assert direct.status >= 400
    before = metric(stack.proxy, TOKENS, tenant="metered")
    assert ask(stack.proxy.url, path, body) == direct
    assert ask(stack.proxy.url, path, body, "metered") == direct
    assert metric(stack.proxy, TOKENS, tenant="metered") == before


def test_vectors_without_usage_are_for_tenants_without_a_limit_of_tokens(stack: Stack) -> None:
    """`bytes_only` tells nothing but the vectors, so it cannot be charged for."""
    body = {"input": TEXTS, "encoding_format": "bytes_only"}
    direct = ask(stack.engine.url, EMBEDDINGS, body)
    assert ask(stack.proxy.url, EMBEDDINGS, body) == direct
    assert (direct.status, direct.head) == (200, "")
    refused = ask(stack.proxy.url, EMBEDDINGS, body, "metered")
    assert refused.status == 400
    assert json.loads(refused.body)["error"]["param"] == "encoding_format"


def test_a_limit_of_tokens_counts_what_is_embedded(stack: Stack) -> None:
    """One request above the limit, and the tenant has to wait."""
    body = {"input": [5] * 60}
    assert ask(stack.proxy.url, EMBEDDINGS, body, "poor").num_tokens == 60
    wait_until(lambda: metric(stack.proxy, TOKENS, tenant="poor") == 60)
    refused = ask(stack.proxy.url, EMBEDDINGS, body, "poor")
    assert refused.status == 429
    assert "40 tokens a minute" in json.loads(refused.body)["error"]["message"]


def test_vectors_and_chats_behind_one_proxy(stack: Stack, tmp_path: Path) -> None:
    """Each goes to the engine that serves its model, and both models are listed."""
    chatting = {"model": "chatting", "messages": [{"role": "user", "content": "w1"}]}
    with ExitStack() as exits:
        other = exits.enter_context(served_engine(tmp_path, name="chatting"))
        engines = {"vectors": stack.engine.url, "chats": other.url}
        config = make_config(
            listen={"port": 0},
            upstreams=[{"name": name, "url": url} for name, url in engines.items()],
            routing={"policy": "round_robin"},
            health_interval_seconds=0.1,
        )
        proxy = exits.enter_context(running_proxy(config))
        wait_until(lambda: all(replica.healthy for replica in proxy.proxy.replicas))
        direct = ask(stack.engine.url, EMBEDDINGS, FORMS["text"])
        for _ in range(3):
            assert ask(proxy.url, EMBEDDINGS, FORMS["text"]) == direct
            assert ask(proxy.url, CHAT, chatting | {"max_tokens": 2}).status == 200
        with closing(http.client.HTTPConnection(proxy.url.removeprefix("http://"))) as link:
            link.request("GET", "/v1/models")
            listed = json.loads(link.getresponse().read())
    assert [each["id"] for each in listed["data"]] == ["target", "chatting"]


@pytest.mark.parametrize("asked", [{"prompt": TEXTS[0]}, {"messages": SAY}], ids=str)
def test_tokens_are_told(stack: Stack, asked: dict[str, Any]) -> None:
    """An engine of vectors has a tokenizer as any other, and it costs no tokens."""
    direct = ask(stack.engine.url, "/tokenize", asked)
    assert direct.status == 200
    before = metric(stack.proxy, TOKENS, tenant="metered")
    assert ask(stack.proxy.url, "/tokenize", asked, "metered") == direct
    back = {"tokens": json.loads(direct.body)["tokens"]}
    text = ask(stack.proxy.url, "/detokenize", back, "metered")
    assert text == ask(stack.engine.url, "/detokenize", back)
    words = asked.get("prompt") or SAY[0]["content"]
    assert words in json.loads(text.body)["prompt"]
    assert metric(stack.proxy, TOKENS, tenant="metered") == before


def vectors(stack: Stack, **asked: Any) -> list[list[float]]:
    """What vLLM itself says."""
    told = json.loads(ask(stack.engine.url, EMBEDDINGS, asked).body)["data"]
    assert [each["index"] for each in told] == [*range(len(told))]
    return [each["embedding"] for each in told]


def packed(vector: list[float]) -> bytes:
    return struct.pack(f"<{len(vector)}f", *vector)


def test_base64_is_the_floats(stack: Stack) -> None:
    """Both forms say the same numbers, as many as the model is wide."""
    floats = vectors(stack, input=TEXTS)
    told = json.loads(ask(stack.proxy.url, EMBEDDINGS, FORMS["base64"]).body)["data"]
    assert [base64.b64decode(each["embedding"]) for each in told] == [*map(packed, floats)]
    assert {len(vector) for vector in floats} == {576}


def test_openai(stack: Stack) -> None:
    """Asked for as it likes, as floats or of tokens: vLLM's numbers, usage and refusals."""
    found = stack.clients.found(SDKS / "clients" / "embed_with_openai.py")
    as_vllm_says(stack, found)
    assert [*map(packed, found["of_tokens"])] == [*map(packed, vectors(stack, input=IDS))]
    assert found["tokens_usage"] == sum(map(len, IDS))
    assert len(found["refused"]) == 2
    for text, asked_at_once in zip(TEXTS, found["later"], strict=True):
        assert asked_at_once == pytest.approx(vectors(stack, input=text)[0], abs=1e-5)


def test_openai_for_node(stack: Stack) -> None:
    """The same numbers, usage and refusal."""
    found = stack.clients.found(SDKS / "node" / "embed_with_openai.mjs")
    as_vllm_says(stack, found)
    assert found["refused"] == 400


def as_vllm_says(stack: Stack, found: dict[str, Any]) -> None:
    floats = [*map(packed, vectors(stack, input=TEXTS))]
    for form in ("plain", "floats"):
        assert [*map(packed, found[form])] == floats
    num_tokens = ask(stack.engine.url, EMBEDDINGS, FORMS["floats"]).num_tokens
    assert found["usage"] == [num_tokens, num_tokens]


def test_it_is_as_the_document_says(stack: Stack) -> None:
    """Right or wrong, what Schemathesis makes up is answered as `/openapi.json` says."""
    run_schemathesis(stack.clients, "--include-path", EMBEDDINGS)
