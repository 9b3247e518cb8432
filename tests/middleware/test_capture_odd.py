"""The proxy's capture beside engines that answer as no sound engine does, and its settings."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from captured import metric, recorded, wait_recorded
from paceline.caches import ModelFingerprint
from paceline.errors import ConfigError, JournalError
from paceline.middleware.capture import Capture, fingerprint_of
from paceline.middleware.config import CaptureConfig, load_config, make_config
from paceline.middleware.doctor import examine
from paceline.middleware.server import running_proxy
from paceline.policies.tenants import PolicyFile, hash_key
from redis_server import RedisServer
from small_traces import save_tokenizer
from waiting import wait_until

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
DROPPED = "paceline_proxy_capture_dropped_total"
PROMPT = b'"prompt_token_ids":[7,8,9]'
FIRST = b'data: {"model":"m","choices":[{"index":0,"delta":{"role":"assistant"}}],%b}\n\n' % PROMPT
NEXT = b'data: {"model":"m","choices":[{"index":0,"delta":{"content":"a"},"token_ids":[%d]}]}\n\n'

Engines = Callable[..., Any]
Proxies = Callable[..., Any]


@pytest.fixture
def capture(redis_server: RedisServer, tmp_path: Path) -> dict[str, Any]:
    """A capture's settings: a real Redis, a real tokenizer."""
    folder = tmp_path / "tokenizer"
    save_tokenizer(folder)
    return {"redis_url": redis_server.url, "model": "m", "tokenizer": folder}


def model_of(capture: dict[str, Any]) -> ModelFingerprint:
    return fingerprint_of(CaptureConfig(**capture))


def post(url: str, body: Any = BODY, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    with closing(connection):
        connection.request("POST", CHAT, json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, response.read()


def answering(*parts: bytes, dies: bool = False) -> Any:
    """An engine that sends these bytes, as a stream where they are events."""
    kind = b"text/event-stream" if parts and parts[0].startswith(b"data:") else b"application/json"

    async def answer(_request: Any, _reader: Any, writer: Any) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n" % kind)
        writer.write(b"transfer-encoding: chunked\r\n\r\n")
        for part in parts:
            writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            await writer.drain()
        if dies:
            writer.close()
            raise ConnectionResetError
        writer.write(b"0\r\n\r\n")

    return answer


ODD = b'{"model":"m","choices":[{"index":0,"token_ids":"none"}]}'
HIDDEN = b'{"model":"m","choices":[{"index":0,"token_ids":null}],"prompt_token_ids":null}'
STRANGE = b'{"model":"lora","choices":[{"index":0,"token_ids":null}],"prompt_token_ids":null}'
WORDS = b'{"model":"m","choices":[{"index":0,"token_ids":[-1]}],"prompt_token_ids":[1]}'


@pytest.mark.redis
@pytest.mark.parametrize(
    ("answer", "shown", "reason"),
    [
        (b'{"choices":[],"model":"m"}', None, "no_token_ids"),
        (b'{"choices": not json', None, "odd_answer"),
        (b'{"choices": not json, "token_ids":[1]}', None, "odd_answer"),
        (ODD, None, "odd_answer"),
        (HIDDEN, None, "no_token_ids"),
        (WORDS, WORDS.replace(b"[-1]", b"null").replace(b"[1]", b"null"), "odd_answer"),
        (
            STRANGE.replace(b"null", b"[1]"),
            STRANGE,
            "other_model",
        ),
    ],
)
def test_what_cannot_be_recorded_is_passed_on_and_counted(
    engines: Engines,
    proxies: Proxies,
    capture: dict[str, Any],
    answer: bytes,
    shown: bytes | None,
    reason: str,
) -> None:
    """No engine that misunderstands the flag costs its client the answer."""
    engine = engines(answering(answer))
    proxy = proxies(engine.url, capture=capture)
    assert post(proxy.url) == (200, answer if shown is None else shown)
    assert engine.seen[0].json["return_token_ids"] is True
    wait_until(lambda: metric(proxy, DROPPED, reason=reason) == 1)
    assert recorded(capture["redis_url"], model_of(capture), "local") == []


@pytest.mark.redis
def test_an_odd_event_passes_and_ends_the_recording(
    engines: Engines, proxies: Proxies, capture: dict[str, Any]
) -> None:
    """What stands around it is still edited; half a sequence is not recorded."""
    odd = b'data: {"choices":[{"token_ids":{}}]}\n\n'
    engine = engines(answering(FIRST, NEXT % 1, odd, NEXT % 2))
    proxy = proxies(engine.url, capture=capture)
    shown = FIRST.replace(b"[7,8,9]", b"null") + NEXT.replace(b"[%d]", b"null")
    assert post(proxy.url, BODY | {"stream": True})[1] == shown + odd + NEXT.replace(
        b"[%d]", b"null"
    )
    wait_until(lambda: metric(proxy, DROPPED, reason="odd_answer") == 1)


@pytest.mark.redis
def test_an_engine_that_dies_in_a_stream_leaves_what_it_said(
    engines: Engines, proxies: Proxies, capture: dict[str, Any]
) -> None:
    """The client gets whole events without ids and an error; what it was told is recorded."""
    engine = engines(answering(FIRST, NEXT % 1, NEXT % 2, NEXT[:30], dies=True))
    proxy = proxies(engine.url, capture=capture)
    _, data = post(proxy.url, BODY | {"stream": True})
    first, second, third, error, end = data.split(b"\n\n")
    assert (first + b"\n\n") == FIRST.replace(b"[7,8,9]", b"null")
    assert (second, third) == (NEXT.replace(b"[%d]", b"null").strip(),) * 2
    assert b"upstream_error" in error
    assert end == b""
    [record] = wait_recorded(capture["redis_url"], model_of(capture), "local")
    assert record.token_ids.tolist() == [7, 8, 9, 1, 2]
    assert record.num_prompt == 3


@pytest.mark.redis
def test_only_the_engine_that_answers_is_recorded(
    engines: Engines, proxies: Proxies, capture: dict[str, Any]
) -> None:
    """An engine that dies before its client has a byte leaves nothing; the next one is recorded."""
    dying = engines(answering(FIRST[:40], dies=True))
    sound = engines(answering(FIRST, NEXT % 5))
    proxy = proxies(dying.url, sound.url, capture=capture)
    for session in range(6):
        assert post(proxy.url, BODY | {"stream": True}, **{"x-session-id": str(session)})[0] == 200
    assert dying.seen
    found = wait_recorded(capture["redis_url"], model_of(capture), "local", 6)
    assert {tuple(record.token_ids.tolist()) for record in found} == {(7, 8, 9, 5)}
    assert metric(proxy, "paceline_proxy_capture_held_bytes") == 0


@pytest.mark.redis
def test_several_replies_are_several_sequences(
    engines: Engines, proxies: Proxies, capture: dict[str, Any]
) -> None:
    """Each reply to each prompt has a record of its own, under the id an engine would give it."""
    choice = b'{"index":%d,"prompt_token_ids":[%d],"token_ids":[%d]}'
    choices = b",".join(choice % (i, i // 2, 10 + i) for i in range(4))
    engine = engines(answering(b'{"model":"m","choices":[%b]}' % choices))
    proxy = proxies(engine.url, capture=capture)
    assert b"[0]" not in post(proxy.url, BODY | {"n": 2})[1]
    found = wait_recorded(capture["redis_url"], model_of(capture), "local", 4)
    assert [r.token_ids.tolist() for r in found] == [[0, 10], [0, 11], [1, 12], [1, 13]]
    ids = [r.request_id.partition(".")[2] for r in found]
    assert ids == ["", "0.1", "1.0", "1.1"]
    assert len({r.request_id.partition(".")[0] for r in found}) == 1


@pytest.mark.redis
def test_an_adapters_answers_have_a_memory_of_their_own(
    engines: Engines, proxies: Proxies, capture: dict[str, Any]
) -> None:
    """The model that the engine names decides, and only adapters that are listed count."""
    answer = b'{"model":"lora","choices":[{"index":0,"token_ids":[2]}],"prompt_token_ids":[1]}'
    proxy = proxies(engines(answering(answer)).url, capture=capture | {"adapters": ["lora"]})
    post(proxy.url)
    [record] = wait_recorded(capture["redis_url"], model_of(capture), "local")
    assert record.scope == "tenant:local/adapter:lora"


@pytest.mark.redis
@pytest.mark.parametrize(
    "option", [{"echo": True}, {"use_beam_search": True}, {"return_token_ids": "yes"}, {"n": "x"}]
)
def test_a_request_whose_answer_would_change_is_not_asked_for_ids(
    engines: Engines, proxies: Proxies, capture: dict[str, Any], option: dict[str, Any]
) -> None:
    """An echoed prompt, a beam search, what we cannot read: sent on as it is, and counted."""
    engine = engines()
    proxy = proxies(engine.url, capture=capture)
    post(proxy.url, BODY | option)
    assert engine.seen[0].json.get("return_token_ids") == option.get("return_token_ids")
    assert metric(proxy, DROPPED, reason="unsupported_request") == 1


@pytest.mark.redis
def test_endpoints_that_tell_no_ids_are_not_asked_for_any(
    engines: Engines, proxies: Proxies, capture: dict[str, Any]
) -> None:
    """Messages and responses pass as they are and are counted; embeddings say nothing to record."""
    engine = engines(answering(b"{}"))
    proxy = proxies(engine.url, capture=capture)
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=20)
    with closing(connection):
        for path in ("/v1/messages", "/v1/responses", "/v1/embeddings"):
            connection.request("POST", path, json.dumps(BODY))
            assert connection.getresponse().read() == b"{}"
    assert not any("return_token_ids" in seen.json for seen in engine.seen)
    assert metric(proxy, DROPPED, reason="unsupported_request") == 2


@pytest.mark.redis
def test_a_tenants_quota_holds_for_what_the_proxy_records(
    engines: Engines, proxies: Proxies, capture: dict[str, Any], tmp_path: Path
) -> None:
    """`stored_tokens` evicts the oldest though no engine with our worker runs."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        f"tenants: [{{name: t, keys: ['{hash_key('k')}'], memory: {{stored_tokens: 300}}}}]"
    )
    said = ",".join(map(str, range(100)))
    answer = b'{"model":"m","choices":[{"index":0,"token_ids":[%b]}],"prompt_token_ids":[1]}'
    engine = engines(answering(answer % said.encode()))
    proxy = proxies(engine.url, capture=capture, policy_file=policy)
    for session in range(6):
        post(proxy.url, **{"x-api-key": "k", "x-session-id": str(session)})
    evicted = {"event": "evicted_tokens"}
    wait_until(lambda: metric(proxy, "paceline_journal_events_total", **evicted) > 0, 20)
    found = recorded(capture["redis_url"], model_of(capture), "t")
    assert 0 < sum(len(record.token_ids) for record in found) <= 300


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_request_bytes": 100}, r"max_request_bytes.*4096.*100"),
        ({"max_in_flight_bytes": 8192}, r"max_in_flight_bytes.*less than max_request_bytes"),
        ({"adapters": ["m"]}, "an adapter has the model's own name"),
        ({"model": ""}, "capture.model"),
        ({"url": "x"}, "capture.url"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """The message names the value, the limit and what to do, and shows no password."""
    settings = {"redis_url": "redis://:hush@h", "model": "m", "tokenizer": str(tmp_path)} | changes
    with pytest.raises(ConfigError, match=message) as caught:
        make_config(upstreams=[{"name": "e", "url": "http://127.0.0.1:1"}], capture=settings)
    assert "hush" not in str(caught.value)


def test_a_missing_field_shows_no_password() -> None:
    """A block that lacks something is not printed: it holds the URL."""
    with pytest.raises(ConfigError, match=r"capture\.model: Field required") as caught:
        make_config(
            upstreams=[{"name": "e", "url": "http://127.0.0.1:1"}],
            capture={"redis_url": "redis://:hush@h", "tokenizer": "t"},
        )
    assert "hush" not in str(caught.value)


def test_a_tokenizer_or_address_that_is_none_stops_the_start(tmp_path: Path) -> None:
    """Before anything listens the proxy says what it lacks."""
    upstreams = [{"name": "e", "url": "http://127.0.0.1:1"}]
    folder = tmp_path / "tokenizer"
    block = {"redis_url": "redis://127.0.0.1:1", "model": "m", "tokenizer": folder}
    config = make_config(listen={"port": 0}, upstreams=upstreams, capture=block)
    with pytest.raises(ConfigError, match="tokenizer"), running_proxy(config):
        pass
    save_tokenizer(folder)
    wrong = block | {"redis_url": "http://h"}
    config = make_config(listen={"port": 0}, upstreams=upstreams, capture=wrong)
    with pytest.raises(JournalError, match="not a Redis URL"), running_proxy(config):
        pass


def test_doctor_says_whose_memory_the_proxy_fills(tmp_path: Path) -> None:
    """A relative tokenizer is looked for beside the file; its digest is shown, or what is wrong."""
    file = tmp_path / "proxy.yaml"
    file.write_text(
        "upstreams: [{name: e, url: 'http://127.0.0.1:1'}]\n"
        "capture: {redis_url: 'redis://127.0.0.1:1', model: m, tokenizer: tok}\n"
    )
    [finding] = [f for f in examine(config=file) if f.subject == "configuration"]
    assert finding.state == "fail"
    assert "tok" in finding.remedy
    save_tokenizer(tmp_path / "tok")
    config = load_config(file)
    assert config.capture is not None
    findings = [f for f in examine(config=file) if f.subject in ("configuration", "capture")]
    assert [f.state for f in findings] == ["ok", "ok"]
    assert fingerprint_of(config.capture).tokenizer in findings[1].detail


@pytest.mark.redis
def test_a_redis_that_refuses_us_leaves_the_proxy_serving(
    engines: Engines, proxies: Proxies, start_redis: Any, capture: dict[str, Any]
) -> None:
    """Without its password nothing is asked for, nothing recorded, and every request answered."""
    locked = start_redis("--requirepass", "secret")
    engine = engines()
    proxy = proxies(engine.url, capture=capture | {"redis_url": locked.url})
    assert post(proxy.url)[0] == 200
    assert "return_token_ids" not in engine.seen[0].json


def test_every_capture_has_an_origin_of_its_own(tmp_path: Path) -> None:
    """A restarted proxy is another producer."""
    from prometheus_client import CollectorRegistry

    save_tokenizer(tmp_path / "tok")
    config = CaptureConfig(redis_url="redis://127.0.0.1:1", model="m", tokenizer=tmp_path / "tok")
    policy = PolicyFile.model_validate({"tenants": [{"name": "t"}]})
    one, two = (Capture(config, policy, CollectorRegistry()) for _ in range(2))
    assert one.origin != two.origin
