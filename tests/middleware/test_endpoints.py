"""The newer endpoints: what engines see of them, what is counted, and how errors are told."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from captured import metric
from paceline.api_errors import ApiError
from paceline.middleware.endpoints import (
    BODIES,
    COUNT_TOKENS,
    EMBEDDINGS,
    MESSAGES,
    RESPONSES,
    TOKENIZE,
    endpoint_of,
    route_of,
)
from paceline.middleware.usage_editing import UsageMeter
from paceline.middleware.usage_reading import MeteredStream
from paceline.policies.tenants import hash_key
from waiting import wait_until

Engines = Callable[..., Any]
Proxies = Callable[..., Any]

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
SAY = [{"role": "user", "content": "hi"}]
ASKS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": "m", "messages": SAY},
    "/v1/completions": {"model": "m", "prompt": "hi"},
    "/v1/responses": {"model": "m", "input": "hi"},
    "/v1/messages": {"model": "m", "max_tokens": 9, "messages": SAY},
    "/v1/messages/count_tokens": {"model": "m", "messages": SAY},
    "/v1/embeddings": {"model": "m", "input": ["hi"]},
    "/tokenize": {"model": "m", "prompt": "hi"},
    "/detokenize": {"model": "m", "tokens": [1]},
}
ODD = {"a_field_of_tomorrow": {"deep": [1, 2.5, None, "\u00e9"]}}
MESSAGE_STREAM = [
    b'event: message_start\ndata: {"type":"message_start","message":{"usage":'
    b'{"input_tokens":3,"cache_read_input_tokens":4,"output_tokens":0}}}\n\n',
    b"event: ping\ndata: {}\n\n: keep-alive\n\n",
    b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"a"}}\n\n',
    b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"b"}}\n\n',
    b'event: message_delta\ndata: {"type":"message_delta","usage":{"input_tokens":3,'
    b'"cache_read_input_tokens":4,"output_tokens":5}}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
]
RESPONSE_STREAM = [
    b'event: response.created\ndata: {"response":{"usage":null}}\n\n',
    b'event: response.output_text.delta\ndata: {"delta":"a"}\n\n',
    b'event: response.completed\ndata: {"response":{"usage":{"input_tokens":7,'
    b'"input_tokens_details":{"cached_tokens":4},"output_tokens":5,"total_tokens":12}}}\n\n',
]


def exchange(
    url: str, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method, path, data, headers or {})
    response = connection.getresponse()
    result = response.status, response.read(), dict(response.getheaders())
    connection.close()
    return result


def answering(body: dict[str, Any], status: bytes = b"200 OK") -> Any:
    async def answer(_request: Any, _reader: Any, writer: Any) -> None:
        data = json.dumps(body).encode()
        head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        writer.write(head % (status, len(data)) + data)

    return answer


def streaming(parts: list[bytes], *, dies: bool = False) -> Any:
    async def stream(_request: Any, _reader: Any, writer: Any) -> None:
        writer.write(STREAM_HEAD + b"transfer-encoding: chunked\r\n\r\n")
        for part in parts:
            writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            await writer.drain()
        if dies:
            writer.close()
            raise ConnectionResetError
        writer.write(b"0\r\n\r\n")

    return stream


def policy_file(folder: Path, **limits: int) -> Path:
    path = folder / "tenants.yaml"
    tenants = [
        {"name": "shop", "keys": [hash_key("shop-key")], "limits": limits, "priority": 7},
        {"name": "bank", "keys": [hash_key("bank-key")], "record": False},
        {"name": "hush", "keys": [hash_key("hush-key")], "side_channel": "padded"},
    ]
    path.write_text(json.dumps({"tenants": tenants}))
    return path


@pytest.mark.parametrize("path", ASKS)
def test_each_endpoint_carries_what_its_schema_has_a_place_for(
    engines: Engines, proxies: Proxies, tmp_path: Path, path: str
) -> None:
    """Identity, salt and priority where a field takes them; what the client may not set is gone."""
    engine = engines()
    proxy = proxies(engine.url, policy_file=policy_file(tmp_path), priority_scheduling=True)
    forged = {
        "cache_salt": "mine",
        "priority": -5,
        "vllm_xargs": {"paceline_tenant": "bank", "x": 1},
    }
    body = ASKS[path] | ODD | (forged if BODIES[path].takes.cache_salt else {})
    status, _, _ = exchange(proxy.url, "POST", path, body, {"x-api-key": "shop-key"})
    assert status == 200
    seen, takes = engine.seen[0], BODIES[path].takes
    assert seen.path == path
    assert "x-api-key" not in seen.headers
    assert seen.json["a_field_of_tomorrow"] == ODD["a_field_of_tomorrow"]
    if not takes.cache_salt:
        assert seen.body == json.dumps(body).encode()
        return
    assert seen.json["cache_salt"] not in ("mine", "")
    assert seen.json.get("priority") == (7 if takes.priority else None)
    assert seen.headers.get("x-vllm-priority") == ("7" if takes.priority_header else None)
    if takes.xargs:
        assert seen.json["vllm_xargs"]["paceline_tenant"] == "shop"
        assert seen.json["vllm_xargs"]["x"] == 1
        assert seen.json["vllm_xargs"]["paceline_session"].startswith("opening:") or path == (
            "/v1/completions"
        )
    request_id = seen.headers["x-request-id"]
    assert seen.json.get("request_id") == (f"resp_{request_id}" if takes.request_id else None)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", path) for path in ("/sleep", "/wake_up", "/collective_rpc", "/pause")),
        *(("POST", path) for path in ("/reset_prefix_cache", "/v1/load_lora_adapter")),
        *(("GET", path) for path in ("/server_info", "/load", "/version", "/v1/realtime")),
        *(("POST", path) for path in ("/invocations", "/v1/chat/completions/render", "/v2/embed")),
        *(("GET", path) for path in ("/v1/models/../../metrics", "/v1/models/..%2f..%2fload")),
        *(("GET", path) for path in ("/v1/models//load", "/v1/models/%2e%2e/%2e%2e/load")),
        *(("GET", path) for path in ("/v1/models/%252e%252e/load", "/v1/models/m%3Fx=1")),
        ("GET", "/v1/responses/..%2f..%2fload"),
        ("POST", "/v1/responses/..%2f..%2fsleep%3F/cancel"),
        ("DELETE", "/v1/responses/resp_1"),
        ("GET", "/v1/responses"),
        ("POST", "/v1/models"),
        ("OPTIONS", "/v1/messages"),
        ("POST", "/v1/messages/batches"),
        ("POST", "/V1/messages"),
        ("POST", "/v1/messages/"),
    ],
)
def test_what_is_not_on_the_list_reaches_no_engine(
    engines: Engines, proxies: Proxies, method: str, path: str
) -> None:
    """Operators' routes, and paths that lead to them, end at the proxy."""
    engine = engines()
    status, data, _ = exchange(proxies(engine.url).url, method, path, {})
    assert status in (404, 405)
    assert engine.seen == []
    assert json.loads(data)["error"]["message"]


def test_models_with_slashes_in_their_names_are_found(engines: Engines, proxies: Proxies) -> None:
    """The variable part of a path may be what Hugging Face names are made of."""
    engine = engines()
    assert exchange(proxies(engine.url).url, "GET", "/v1/models/org/a.model-1")[0] == 200
    assert engine.seen[0].path == "/v1/models/org/a.model-1"


def test_anthropics_paths_tell_errors_in_anthropics_words(
    engines: Engines, proxies: Proxies, tmp_path: Path
) -> None:
    """Our refusals, an engine's own, and one in the midst of a stream."""
    refuses = engines(answering({"error": {"message": "no such model"}}, b"404 Not Found"))
    proxy = proxies(refuses.url, policy_file=policy_file(tmp_path, requests_per_minute=1))
    body, key = ASKS["/v1/messages"], {"x-api-key": "shop-key"}
    expected = [
        ({}, 401, "authentication_error"),
        (key, 404, "not_found_error"),
        (key, 429, "rate_limit_error"),
    ]
    for headers, status, kind in expected:
        answer = exchange(proxy.url, "POST", "/v1/messages", body, headers)
        told = json.loads(answer[1])
        assert answer[0] == status
        assert told["type"] == "error"
        assert told["error"]["type"] == kind
    assert told["error"]["message"].startswith("tenant 'shop'")
    count = exchange(
        proxy.url, "POST", "/v1/messages/count_tokens", b"[", {"x-api-key": "bank-key"}
    )
    assert json.loads(count[1])["error"]["type"] == "invalid_request_error"
    plain = exchange(proxy.url, "POST", "/v1/chat/completions", {}, {})
    assert "code" in json.loads(plain[1])["error"]


def test_an_engines_own_anthropic_error_stays_as_it_is(engines: Engines, proxies: Proxies) -> None:
    """Not a byte changes."""
    own = {"type": "error", "error": {"type": "BadRequestError", "message": "no", "x": 1}}
    engine = engines(answering(own, b"400 Bad Request"))
    answer = exchange(proxies(engine.url).url, "POST", "/v1/messages", ASKS["/v1/messages"])
    assert answer[:2] == (400, json.dumps(own).encode())


@pytest.mark.parametrize(
    ("path", "parts"), [("/v1/messages", MESSAGE_STREAM), ("/v1/responses", RESPONSE_STREAM)]
)
def test_their_streams_pass_byte_for_byte_and_are_counted(
    engines: Engines, proxies: Proxies, tmp_path: Path, path: str, parts: list[bytes]
) -> None:
    """A limit of tokens changes nothing of the stream, and counts what it tells."""
    engine = engines(streaming(parts))
    proxy = proxies(engine.url, policy_file=policy_file(tmp_path, tokens_per_minute=10**6))
    body = ASKS[path] | {"stream": True}
    status, data, _ = exchange(proxy.url, "POST", path, body, {"x-api-key": "shop-key"})
    assert status == 200
    assert data == b"".join(parts)
    assert "stream_options" not in engine.seen[0].json
    wait_until(lambda: metric(proxy, "paceline_proxy_limit_tokens_total", tenant="shop") == 12)


@pytest.mark.parametrize(
    ("path", "usage", "num_tokens"),
    [
        ("/v1/messages", {"input_tokens": 3, "output_tokens": 5}, 8),
        ("/v1/responses", {"input_tokens": 3, "output_tokens": 5, "total_tokens": 8}, 8),
        ("/v1/embeddings", {"prompt_tokens": 6, "total_tokens": 6, "completion_tokens": 0}, 6),
        ("/tokenize", {"prompt_tokens": 6}, 0),
        ("/v1/messages/count_tokens", {"input_tokens": 6}, 0),
    ],
)
def test_whole_answers_are_counted_by_their_own_usage(
    engines: Engines,
    proxies: Proxies,
    tmp_path: Path,
    path: str,
    usage: dict[str, int],
    num_tokens: int,
) -> None:
    """What only reads words off a tokenizer costs a request, and no tokens."""
    engine = engines(answering({"usage": usage}))
    limits = {"tokens_per_minute": 10**6, "requests_per_minute": 2}
    proxy = proxies(engine.url, policy_file=policy_file(tmp_path, **limits))
    for remaining in (b"1", b"0"):
        status, _, headers = exchange(
            proxy.url, "POST", path, ASKS[path], {"x-api-key": "shop-key"}
        )
        assert status == 200, headers
        assert headers["x-ratelimit-remaining-requests"].encode() == remaining
    assert exchange(proxy.url, "POST", path, ASKS[path], {"x-api-key": "shop-key"})[0] == 429
    told = metric(proxy, "paceline_proxy_limit_tokens_total", tenant="shop")
    assert told == 2 * num_tokens


@pytest.mark.parametrize(
    ("path", "part", "key"),
    [("/v1/messages", MESSAGE_STREAM[2], "type"), ("/v1/responses", RESPONSE_STREAM[1], "code")],
)
def test_a_stream_that_breaks_off_ends_with_its_own_kind_of_error(
    engines: Engines, proxies: Proxies, path: str, part: bytes, key: str
) -> None:
    """Whole events, then one named ``error`` that the SDKs raise."""
    engine = engines(streaming([part, b"event: half"], dies=True))
    _, data, _ = exchange(proxies(engine.url).url, "POST", path, ASKS[path] | {"stream": True})
    assert data.startswith(part + b"event: error\ndata: ")
    assert data.endswith(b"\n\n")
    error = json.loads(data.removeprefix(part).partition(b"data: ")[2])
    assert error["type"] == "error"
    assert "the engine failed" in error["error"]["message"]
    assert key in error


def test_the_sdk_raises_for_a_response_that_breaks_off(engines: Engines, proxies: Proxies) -> None:
    """The error event is one that openai's client understands."""
    engine = engines(streaming(RESPONSE_STREAM[1:2], dies=True))
    url = proxies(engine.url).url
    with openai.OpenAI(base_url=f"{url}/v1", api_key="local", max_retries=0, timeout=20) as api:
        stream = api.responses.create(model="m", input="hi", stream=True)
        with pytest.raises(openai.APIError, match="the engine failed"):
            list(stream)


def test_a_stored_response_is_its_tenants_alone(
    engines: Engines, proxies: Proxies, tmp_path: Path
) -> None:
    """Read, cancelled and continued by whom it was made for, on the engine that keeps it."""
    pair = [engines(), engines()]
    proxy = proxies(*(e.url for e in pair), policy_file=policy_file(tmp_path))
    wait_until(lambda: all(r.healthy for r in proxy.proxy.replicas))
    shop, hush = {"x-api-key": "shop-key"}, {"x-api-key": "hush-key"}
    for number in range(8):
        body = ASKS["/v1/responses"] | {"input": f"turn {number}"}
        assert exchange(proxy.url, "POST", "/v1/responses", body, shop)[0] == 200
    made = [(e, seen) for e in pair for seen in e.seen]
    for engine, seen in made:
        own = f"/v1/responses/{seen.json['request_id']}"
        before = len(engine.seen)
        assert exchange(proxy.url, "GET", f"{own}?stream=true&x=1", None, shop)[0] == 200
        assert exchange(proxy.url, "POST", f"{own}/cancel", {}, shop)[0] == 200
        goes_on = ASKS["/v1/responses"] | {"previous_response_id": seen.json["request_id"]}
        assert exchange(proxy.url, "POST", "/v1/responses", goes_on, shop)[0] == 200
        paths = [each.path for each in engine.seen[before:]]
        assert paths == [f"{own}?stream=true", f"{own}/cancel", "/v1/responses"]
        session = [each.json["vllm_xargs"]["paceline_session"] for each in (seen, engine.seen[-1])]
        assert session[0] == session[1]
        for method, path, data in (
            ("GET", own, None),
            ("POST", f"{own}/cancel", {}),
            ("POST", "/v1/responses", goes_on),
        ):
            status, told, _ = exchange(proxy.url, method, path, data, hush)
            assert status == 404
            assert json.loads(told)["error"]["code"] == "response_not_found"
        assert len(engine.seen) == before + 3


def test_nothing_is_kept_of_what_may_not_be_recorded(
    engines: Engines, proxies: Proxies, tmp_path: Path
) -> None:
    """A tenant without ``record`` has nothing stored, whatever the client asks."""
    engine = engines()
    proxy = proxies(engine.url, policy_file=policy_file(tmp_path))
    body = ASKS["/v1/responses"] | {"store": True}
    exchange(proxy.url, "POST", "/v1/responses", body, {"x-api-key": "bank-key"})
    exchange(proxy.url, "POST", "/v1/responses", body, {"x-api-key": "shop-key"})
    assert [seen.json["store"] for seen in engine.seen] == [False, True]


def test_what_cannot_be_counted_is_not_let_past_a_limit(
    engines: Engines, proxies: Proxies, tmp_path: Path
) -> None:
    """A tenant with limits cannot have answers made behind their back, nor without their usage."""
    engine = engines()
    proxy = proxies(engine.url, policy_file=policy_file(tmp_path, concurrency=1))
    for yes in (1, "on", True):
        body = ASKS["/v1/responses"] | {"background": yes}
        answer = exchange(proxy.url, "POST", "/v1/responses", body, {"x-api-key": "shop-key"})
        assert answer[0] == 400
        assert json.loads(answer[1])["error"]["param"] == "background"
    assert exchange(proxy.url, "POST", "/v1/responses", body, {"x-api-key": "bank-key"})[0] == 200
    vectors = ASKS["/v1/embeddings"] | {"encoding_format": "bytes_only"}  # they tell no usage
    assert (
        exchange(proxy.url, "POST", "/v1/embeddings", vectors, {"x-api-key": "shop-key"})[0] == 200
    )
    metered = proxies(engine.url, policy_file=policy_file(tmp_path, tokens_per_minute=10**6))
    answer = exchange(metered.url, "POST", "/v1/embeddings", vectors, {"x-api-key": "shop-key"})
    assert answer[0] == 400
    assert json.loads(answer[1])["error"]["param"] == "encoding_format"


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
def test_their_streams_are_padded(
    engines: Engines, proxies: Proxies, tmp_path: Path, path: str
) -> None:
    """Each tick has the same size, and what is left without filler is the engine's."""
    parts = MESSAGE_STREAM if path == "/v1/messages" else RESPONSE_STREAM
    engine = engines(streaming(parts))
    proxy = proxies(engine.url, policy_file=policy_file(tmp_path), shaping={"interval_ms": 20})
    _, data, _ = exchange(
        proxy.url, "POST", path, ASKS[path] | {"stream": True}, {"x-api-key": "hush-key"}
    )
    assert len(data) % 1024 == 0
    shown = [e for e in data.split(b"\n\n") if e.strip(b"\n: ")]
    sent = [e for e in b"".join(parts).split(b"\n\n") if e.strip(b"\n: ")]
    assert [e[max(e.find(b"event:"), 0) :] for e in shown] == sent
    assert data.rstrip(b"\n").endswith(parts[-1].rstrip(b"\n"))


def test_a_whole_answer_is_padded_whatever_the_endpoint(
    engines: Engines, proxies: Proxies, tmp_path: Path
) -> None:
    """How many tokens a text has is not told by the answer's length."""
    proxy = proxies(
        engines(answering({"tokens": [1, 2]})).url,
        policy_file=policy_file(tmp_path),
        shaping={"interval_ms": 20},
    )
    for path in ("/tokenize", "/v1/embeddings", "/v1/messages/count_tokens", "/v1/messages"):
        data = exchange(proxy.url, "POST", path, ASKS[path], {"x-api-key": "hush-key"})[1]
        assert len(data) % 1024 == 0
        assert json.loads(data) == {"tokens": [1, 2]}


def test_streams_are_counted_while_they_come() -> None:
    """What is not told yet counts by its pieces, however the bytes are cut."""
    for parts, counts in (
        (MESSAGE_STREAM, [7, 7, 8, 9, 12, 12]),
        (RESPONSE_STREAM, [0, 1, 12]),
    ):
        meter = UsageMeter()
        hold = MeteredStream(meter)
        for part, count in zip(parts, counts, strict=True):
            assert b"".join(hold.push(part[i : i + 9]) for i in range(0, len(part), 9)) == part
            assert meter.num_tokens == count


def test_routes_have_bounded_names() -> None:
    """Metrics tell endpoints apart, and never what clients put into a path."""
    for path in ASKS:
        assert route_of(path) == path
    assert route_of("/v1/responses/resp_1") == "/v1/responses/{id}"
    assert route_of("/v1/responses/x/cancel") == "/v1/responses/{id}/cancel"
    assert route_of("/v1/models/m") == "/v1/models"
    assert route_of("/sleep") == "other"
    found = [endpoint_of("POST", e.route) for e in (MESSAGES, RESPONSES, COUNT_TOKENS, TOKENIZE)]
    assert found == [MESSAGES, RESPONSES, COUNT_TOKENS, TOKENIZE]
    with pytest.raises(ApiError, match="takes POST, not GET"):
        endpoint_of("GET", EMBEDDINGS.route)


def test_a_prediction_reaches_the_worker(
    engines: Engines, proxies: Proxies, tmp_path: Path
) -> None:
    """Its text goes among the extra arguments, where memory may draft; no client puts it there."""
    engine = engines()
    proxy = proxies(engine.url, policy_file=policy_file(tmp_path))
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    forged = {"vllm_xargs": {"paceline_prediction": "forged"}}
    path = "/v1/chat/completions"
    for prediction, headers, told in (
        ({"type": "content", "content": "a b"}, {}, "a b"),
        ({"type": "content", "content": parts}, {}, "a b"),
        ({"type": "content", "content": "a"}, {"x-paceline-speculation": "off"}, None),
        ({"type": "content", "content": "a"}, {"x-paceline-draft-sources": "model"}, None),
        (None, {}, None),
    ):
        body = ASKS[path] | {"prediction": prediction} | forged
        exchange(proxy.url, "POST", path, body, {"x-api-key": "shop-key", **headers})
        seen = engine.seen[-1].json
        assert seen["prediction"] == prediction
        assert seen["vllm_xargs"].get("paceline_prediction") == told
    for wrong in ("text", {"type": "content"}, {"type": "content", "content": "x" * 400_001}):
        body = ASKS[path] | {"prediction": wrong}
        status, data, _ = exchange(proxy.url, "POST", path, body, {"x-api-key": "shop-key"})
        assert status == 400
        assert json.loads(data)["error"]["param"] == "prediction"


@pytest.mark.parametrize(
    ("asked", "is_scheduled", "sent", "told"),
    [
        ("flex", True, ("flex", 500), "flex"),
        ("priority", True, ("default", 7), "default"),
        ("default", True, ("default", 7), "default"),
        ("flex", False, ("default", None), "default"),
        (None, True, (None, 7), None),
    ],
)
def test_a_tier_is_served_within_what_the_policy_lets(
    engines: Engines,
    proxies: Proxies,
    tmp_path: Path,
    asked: str | None,
    is_scheduled: bool,
    sent: tuple[str | None, int | None],
    told: str | None,
) -> None:
    """Later than the policy says, never sooner; what is granted is told to engine and client."""
    engine = engines()
    policy = policy_file(tmp_path)
    proxy = proxies(engine.url, policy_file=policy, priority_scheduling=is_scheduled)
    for path in ("/v1/chat/completions", "/v1/responses"):
        body = ASKS[path] | ({} if asked is None else {"service_tier": asked})
        headers = exchange(proxy.url, "POST", path, body, {"x-api-key": "shop-key"})[2]
        seen = engine.seen[-1].json
        assert (seen.get("service_tier"), seen.get("priority")) == sent
        assert headers.get("x-paceline-service-tier") == told


def test_end_users_have_sessions_of_their_own(engines: Engines, proxies: Proxies) -> None:
    """Conversations that begin alike are told apart by the user that each API names."""
    engine = engines()
    url = proxies(engine.url).url
    named: list[tuple[str, dict[str, Any]]] = [
        ("/v1/chat/completions", {}),
        ("/v1/chat/completions", {"user": "u"}),
        ("/v1/chat/completions", {"safety_identifier": "v", "user": "u"}),
        ("/v1/messages", {"metadata": {"user_id": "w"}}),
    ]
    for path, fields in named:
        exchange(url, "POST", path, ASKS[path] | fields)
    sessions = {seen.json["vllm_xargs"]["paceline_session"] for seen in engine.seen}
    assert len(sessions) == len(named)
