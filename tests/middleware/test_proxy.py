"""The proxy over real sockets: what engines see, what clients get when either side fails."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from paceline.errors import ConfigError
from paceline.middleware.config import make_config
from paceline.middleware.server import running_proxy
from paceline.policies.tenants import hash_key
from paceline.processes import free_port
from waiting import wait_until

CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
ODD_STREAM = [
    b": keep-alive\n\n",
    b'data: {"choices":[{"index":0,"delta":{"cont',
    b'ent":"\xc3',
    b'\xa9"}}]}\n\n',
    b"event: usage\r\ndata: {}\r\n\r\ndata: [DONE]\n\n",
]

Engines = Callable[..., Any]
Proxies = Callable[..., Any]


def post(url: str, body: Any = BODY, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    status, data, _ = exchange(url, "POST", CHAT, body, headers)
    return status, data


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


def client(url: str, key: str = "local") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=20)


async def reply_odd_stream(_request: Any, _reader: Any, writer: Any) -> None:
    writer.write(STREAM_HEAD + b"transfer-encoding: chunked\r\n\r\n")
    for part in ODD_STREAM:
        writer.write(b"%x\r\n%b\r\n" % (len(part), part))
        await writer.drain()
        await asyncio.sleep(0.01)
    writer.write(b"0\r\n\r\n")


def die_after(parts: list[bytes]) -> Any:
    async def die(_request: Any, _reader: Any, writer: Any) -> None:
        writer.write(STREAM_HEAD + b"transfer-encoding: chunked\r\n\r\n")
        for part in parts:
            writer.write(b"%x\r\n%b\r\n" % (len(part), part))
        await writer.drain()
        writer.transport.abort() if not parts else writer.close()
        raise ConnectionResetError

    return die


async def die_at_once(_request: Any, _reader: Any, writer: Any) -> None:
    writer.transport.abort()
    raise ConnectionResetError


def policy_file(folder: Path) -> Path:
    path = folder / "tenants.yaml"
    path.write_text(
        f"""
tenants:
  - {{name: shop, keys: ['{hash_key("shop-key")}'], group: retail}}
  - {{name: bank, keys: ['{hash_key("bank-key")}'], record: false, speculation: 'off'}}
admin_keys: ['{hash_key("admin-key")}']
"""
    )
    return path


def test_streams_pass_byte_for_byte(engines: Engines, proxies: Proxies) -> None:
    """Comments, split characters, mixed line ends: the client gets the engine's bytes."""
    engine = engines(reply_odd_stream)
    status, data = post(proxies(engine.url).url, BODY | {"stream": True})
    assert status == 200
    assert data == b"".join(ODD_STREAM)


def test_the_engine_sees_who_asks_and_no_credentials(
    engines: Engines, proxies: Proxies, tmp_path: Path
) -> None:
    """Identity, salt and request id are ours; the client's key and forged fields never arrive."""
    engine = engines()
    proxy = proxies(engine.url, policy_file=policy_file(tmp_path))
    headers = {"authorization": "Bearer shop-key", "x-session-id": "s1", "x-request-id": "mine"}
    forged = BODY | {"vllm_xargs": {"paceline_tenant": "bank", "k": 1}, "priority": 9}
    status, _, answered = exchange(proxy.url, "POST", CHAT, forged, headers)
    post(proxy.url, BODY, {"x-api-key": "bank-key"})
    shop, bank = engine.seen
    assert status == 200
    assert shop.json["vllm_xargs"] == {
        "k": 1,
        "paceline_tenant": "shop",
        "paceline_group": "retail",
        "paceline_session": "generic:s1",
        "paceline_workload": "",
        "paceline_record": 1,
    }
    assert "priority" not in shop.json
    assert bank.json["vllm_xargs"]["paceline_record"] == 0
    assert bank.json["vllm_xargs"]["paceline_speculation"] == "off"
    assert shop.json["cache_salt"] != bank.json["cache_salt"]
    assert "authorization" not in shop.headers
    assert "x-api-key" not in bank.headers
    assert shop.headers["x-request-id"] == answered["x-request-id"] != "mine"
    assert answered["x-client-request-id"] == "mine"


@pytest.mark.parametrize(
    ("key", "header", "record"),
    [
        ("shop-key", None, 1),
        ("shop-key", "on", 1),
        ("shop-key", "off", 0),
        ("shop-key", " OFF ", 0),
        ("shop-key", "perhaps", 0),
        ("bank-key", "on", 0),
    ],
)
def test_a_request_can_keep_itself_from_being_recorded_and_do_no_more(
    engines: Engines, proxies: Proxies, tmp_path: Path, key: str, header: str | None, record: int
) -> None:
    """The header takes recording away from one request; what the policy refuses it cannot give."""
    engine = engines()
    proxy = proxies(engine.url, policy_file=policy_file(tmp_path))
    headers = {"x-api-key": key} | ({} if header is None else {"x-paceline-record": header})
    assert post(proxy.url, BODY, headers)[0] == 200
    [seen] = engine.seen
    assert seen.json["vllm_xargs"]["paceline_record"] == record
    assert "x-paceline-record" not in seen.headers


NARROWED = f"""
tenants:
  - name: shop
    keys: ['{hash_key("shop-key")}']
    speculation: {{draft_tokens: 12}}
    priority: 3
    workloads:
      sql: {{speculation: {{sources: [memory], draft_tokens: 6}}}}
      quiet-*: {{speculation: off, record: false, sharing: private}}
"""


def shop_of(proxies: Proxies, folder: Path, url: str, **settings: Any) -> Callable[..., Any]:
    path = folder / "tenants.yaml"
    path.write_text(NARROWED)
    proxy = proxies(url, policy_file=path, **settings)

    def ask(**headers: str) -> tuple[int, dict[str, str], Any]:
        named = {f"x-paceline-{name.replace('_', '-')}": value for name, value in headers.items()}
        status, data, head = exchange(
            proxy.url, "POST", CHAT, BODY, {"x-api-key": "shop-key", **named}
        )
        return status, head, json.loads(data)

    return ask


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, {"draft_tokens": 12}),
        ({"workload": "sql"}, {"draft_tokens": 6, "draft_sources": "memory"}),
        ({"workload": "quiet-night"}, {"speculation": "off"}),
        ({"speculation": "off"}, {"speculation": "off"}),
        ({"speculation": "auto", "draft_tokens": "99"}, {"draft_tokens": 12}),
        ({"draft_tokens": "2"}, {"draft_tokens": 2}),
        ({"draft_tokens": "0"}, {"speculation": "off"}),
        ({"draft_sources": "model"}, {"draft_tokens": 12, "draft_sources": "model"}),
        ({"draft_sources": "model", "workload": "sql"}, {"speculation": "off"}),
        ({"draft_sources": "model", "speculation": "off"}, {"speculation": "off"}),
    ],
)
def test_workload_and_request_narrow_speculation(
    engines: Engines, proxies: Proxies, tmp_path: Path, headers: Any, expected: Any
) -> None:
    """The engine is told what is left of what tenant, workload and request allow."""
    engine = engines()
    assert shop_of(proxies, tmp_path, engine.url)(**headers)[0] == 200
    [seen] = engine.seen
    told = seen.json["vllm_xargs"]
    names = ("speculation", "draft_tokens", "draft_sources")
    assert {n: told[f"paceline_{n}"] for n in names if f"paceline_{n}" in told} == expected
    assert told["paceline_record"] == (0 if "quiet" in headers.get("workload", "") else 1)
    assert "priority" not in seen.json


def test_what_holds_is_said_on_request(engines: Engines, proxies: Proxies, tmp_path: Path) -> None:
    """With `x-paceline-explain: on` the answer's headers say what holds and who said it."""
    engine = engines()
    ask = shop_of(proxies, tmp_path, engine.url)
    _, head, _ = ask(explain="on", workload="sql", draft_tokens="3")
    assert head["x-paceline-tenant"] == "shop"
    assert head["x-paceline-workload"] == "sql"
    assert head["x-paceline-speculation"] == "memory; draft_tokens=3"
    assert head["x-paceline-speculation-from"] == "tenant shop, workload sql, the request"
    assert (head["x-paceline-record"], head["x-paceline-record-from"]) == ("on", "built in")
    _, head, _ = ask(workload="sql")
    assert not any(name.startswith("x-paceline") for name in head)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("draft_tokens", "many", "a number from 0 to 128"),
        ("draft_tokens", "129", "a number from 0 to 128"),
        ("draft_sources", "oracle", "memory, model"),
        ("speculation", "faster", "auto or off"),
        ("sharing", "everybody", "private, group, global"),
        ("side_channel", "shut", "padded, aggregate, open"),
        ("priority", "-1", "a number from 0 to 1000"),
        ("recrod", "off", "x-paceline-record"),
    ],
)
def test_a_header_that_cannot_be_understood_is_named(
    engines: Engines, proxies: Proxies, tmp_path: Path, name: str, value: str, message: str
) -> None:
    """The client learns which header, and what it may be; the engine is not asked."""
    engine = engines()
    status, _, answer = shop_of(proxies, tmp_path, engine.url)(**{name: value})
    assert status == 400
    assert f"x-paceline-{name.replace('_', '-')}" in answer["error"]["message"]
    assert message in answer["error"]["message"]
    assert engine.seen == []


LEARNING = f"""
tenants:
  - name: shop
    keys: ['{hash_key("shop-key")}']
    learn: true
    drafter: retail
  - name: club
    keys: ['{hash_key("club-key")}']
"""


@pytest.mark.parametrize(
    ("key", "header", "expected"),
    [
        ("shop-key", {}, {"learn": 1, "drafter": "retail"}),
        ("shop-key", {"x-paceline-learn": "off"}, {"drafter": "retail"}),
        ("shop-key", {"x-paceline-record": "off"}, {"drafter": "retail"}),
        ("club-key", {"x-paceline-learn": "on"}, {}),
    ],
)
def test_what_may_be_learned_from_comes_from_the_policy(
    engines: Engines,
    proxies: Proxies,
    tmp_path: Path,
    key: str,
    header: dict[str, str],
    expected: dict[str, Any],
) -> None:
    """The engine is told of learning and of a drafter of their own; no client says so itself."""
    engine = engines()
    path = tmp_path / "tenants.yaml"
    path.write_text(LEARNING)
    proxy = proxies(engine.url, policy_file=path)
    forged = BODY | {"vllm_xargs": {"paceline_learn": 1, "paceline_drafter": "bank"}}
    assert post(proxy.url, forged, {"x-api-key": key, **header})[0] == 200
    [seen] = engine.seen
    told = seen.json["vllm_xargs"]
    names = ("learn", "drafter")
    assert {n: told[f"paceline_{n}"] for n in names if f"paceline_{n}" in told} == expected


def test_priority_reaches_engines_that_schedule_by_it(
    engines: Engines, proxies: Proxies, tmp_path: Path
) -> None:
    """A request can put itself behind others of its tenant, never before them."""
    engine = engines()
    ask = shop_of(proxies, tmp_path, engine.url, priority_scheduling=True)
    for headers in ({}, {"priority": "7"}, {"priority": "1"}):
        assert ask(**headers)[0] == 200
    assert [seen.json["priority"] for seen in engine.seen] == [3, 7, 3]


def test_no_client_widens_what_its_tenant_may_see(
    engines: Engines, proxies: Proxies, tmp_path: Path
) -> None:
    """Sharing, tiers, capacity and retention come from the policy file alone."""
    engine = engines()
    path = tmp_path / "tenants.yaml"
    path.write_text(
        f"""
tenants:
  - name: shop
    keys: ['{hash_key("shop-key")}']
    memory: {{tenant: false, capacity: 1000, stored_tokens: 70}}
  - name: club
    keys: ['{hash_key("club-key")}']
    sharing: global
    memory: {{retention_seconds: 60}}
"""
    )
    proxy = proxies(engine.url, policy_file=path)
    forged = {
        "paceline_sharing": "global",
        "paceline_group": "bank",
        "paceline_tiers": "session,workload,tenant",
        "paceline_capacity": 10**9,
        "paceline_stored_tokens": 10**9,
        "paceline_retention_seconds": 10**9,
        "paceline_record": 1,
    }
    for key in ("shop-key", "club-key"):
        assert post(proxy.url, BODY | {"vllm_xargs": forged}, {"x-api-key": key})[0] == 200
    shop, club = (seen.json["vllm_xargs"] for seen in engine.seen)
    assert "paceline_sharing" not in shop
    assert "paceline_group" not in shop
    assert (shop["paceline_tiers"], shop["paceline_capacity"]) == ("session,workload", 1000)
    assert shop["paceline_stored_tokens"] == 70
    assert "paceline_retention_seconds" not in shop
    assert (club["paceline_sharing"], club["paceline_retention_seconds"]) == ("global", 60.0)
    assert "paceline_tiers" not in club
    salts = [seen.json["cache_salt"] for seen in engine.seen]
    assert salts[0] != salts[1]


def test_wrong_keys_raise_what_the_sdk_expects(
    engines: Engines, proxies: Proxies, tmp_path: Path
) -> None:
    """A missing or unknown key is an authentication error, and the engine is not asked."""
    engine = engines()
    proxy = proxies(engine.url, policy_file=policy_file(tmp_path))
    with client(proxy.url, "wrong") as sdk, pytest.raises(openai.AuthenticationError) as error:
        sdk.chat.completions.create(**BODY)  # type: ignore[call-overload]
    assert error.value.code == "invalid_api_key"
    assert post(proxy.url)[0] == 401
    assert engine.seen == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/reset_prefix_cache", b"", 404),
        ("POST", "/v1/../pause", b"", 404),
        ("GET", "/tokenizer_info", b"{}", 404),
        ("POST", "/v1/audio/speech", None, 404),
        ("GET", CHAT, None, 405),
        ("POST", "/v1/models", b"{}", 405),
        ("POST", CHAT, b"not json", 400),
        ("POST", CHAT, b"[1]", 400),
        ("POST", CHAT, b"x" * 2001, 413),
    ],
)
def test_what_is_not_served_is_answered_in_openais_shape(
    engines: Engines, proxies: Proxies, method: str, path: str, body: Any, status: int
) -> None:
    """Foreign routes, wrong methods and unusable bodies never reach the engine."""
    engine = engines()
    got, data, _ = exchange(proxies(engine.url, max_body_bytes=2000).url, method, path, body)
    assert got == status
    assert set(json.loads(data)["error"]) == {"message", "type", "param", "code"}
    assert engine.seen == []


def test_a_death_in_a_stream_ends_in_one_well_formed_error_event(
    engines: Engines, proxies: Proxies
) -> None:
    """Whole events, then an error event: bytes show it, and the SDK raises APIError."""
    chunk = b'{"id":"1","object":"chat.completion.chunk","created":1,"model":"m","choices":[]}'
    event = b"data: " + chunk + b"\n\n"
    engine = engines(die_after([event, b'data: {"half']))
    proxy = proxies(engine.url)
    _, data = post(proxy.url, BODY | {"stream": True})
    first, second, end = data.split(b"\n\n")
    assert first + b"\n\n" == event
    assert json.loads(second.removeprefix(b"data: "))["error"]["code"] == "upstream_error"
    assert end == b""
    with client(proxy.url) as sdk:
        stream = sdk.chat.completions.create(**BODY, stream=True)  # type: ignore[call-overload]
        with pytest.raises(openai.APIError, match="engine failed"):
            list(stream)


@pytest.mark.parametrize("script", [die_at_once, die_after([])], ids=["at-once", "after-head"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_death_before_the_first_byte_goes_to_the_next_engine(
    engines: Engines, proxies: Proxies, script: Any, *, stream: bool
) -> None:
    """While the client has nothing yet another engine answers; alone it is a 502."""
    dying, sound = engines(script), engines()
    proxy = proxies(dying.url, sound.url)
    for session in range(8):
        headers = {"x-session-id": str(session)}
        assert post(proxy.url, BODY | {"stream": stream}, headers)[0] == 200
    status, data = post(proxies(dying.url).url, BODY | {"stream": stream})
    assert status == 502
    assert json.loads(data)["error"]["type"] == "api_error"


def test_a_dead_engine_does_not_keep_clients_waiting(engines: Engines, proxies: Proxies) -> None:
    """With one engine's port closed and one that never accepts, requests go to the third."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        sound = engines()
        proxy = proxies(
            f"http://127.0.0.1:{free_port()}",
            url,
            sound.url,
            connect_timeout_seconds=0.5,
            read_timeout_seconds=0.5,
        )
        statuses = {post(proxy.url, BODY, {"x-session-id": str(n)})[0] for n in range(6)}
    assert statuses == {200}
    assert len(sound.seen) == 6


@pytest.mark.parametrize("says_something", [True, False])
def test_a_silent_engine_is_given_up(
    engines: Engines, proxies: Proxies, *, says_something: bool
) -> None:
    """Silence before the answer is a 502, silence within a stream ends it with an error event."""
    event = b"data: {}\n\n"

    async def fall_silent(_request: Any, reader: Any, writer: Any) -> None:
        if says_something:
            writer.write(STREAM_HEAD + b"transfer-encoding: chunked\r\n\r\n")
            for _ in range(3):
                writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                await writer.drain()
                await asyncio.sleep(0.2)
        await engine.wait_until_left(reader)

    engine = engines(fall_silent)
    status, data = post(proxies(engine.url, read_timeout_seconds=0.3).url, BODY | {"stream": True})
    if says_something:
        assert status == 200
        assert data.startswith(event * 3 + b"data: {")
        assert b"nothing came for 0.3 s" in data
    else:
        assert status == 502
    assert engine.left.wait(5)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_takes_the_engines_work_with_it(
    engines: Engines, proxies: Proxies, *, stream: bool
) -> None:
    """Closing the client's connection closes the engine's, streaming or not."""
    event = b"data: {}\n\n"

    async def never_end(_request: Any, reader: Any, writer: Any) -> None:
        if stream:
            writer.write(STREAM_HEAD + b"transfer-encoding: chunked\r\n\r\n")
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
        await writer.drain()
        await engine.wait_until_left(reader)

    engine = engines(never_end)
    proxy = proxies(engine.url)
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=20)
    connection.request("POST", CHAT, json.dumps(BODY | {"stream": stream}))
    if stream:
        assert connection.getresponse().read(len(event)) == event
    wait_until(lambda: len(engine.seen) == 1)
    connection.close()
    assert engine.left.wait(5)
    wait_until(lambda: b'client_aborts_total{tenant="local"} 1.0' in proxy.proxy.metrics.render())


def test_a_session_stays_with_its_engine_until_it_fails(engines: Engines, proxies: Proxies) -> None:
    """A session stays on one engine, sessions spread, and a sick engine is left alone."""
    pair = [engines(), engines()]
    proxy = proxies(*(e.url for e in pair))
    wait_until(lambda: all(r.healthy for r in proxy.proxy.replicas))
    for session in range(20):
        before = [len(e.seen) for e in pair]
        for _ in range(3):
            post(proxy.url, BODY, {"x-session-id": str(session)})
        assert sorted(len(e.seen) - b for e, b in zip(pair, before, strict=True)) == [0, 3]
    assert all(e.seen for e in pair)
    pair[0].healthy = False
    wait_until(lambda: not proxy.proxy.replicas[0].healthy)
    before = len(pair[0].seen)
    for session in range(10):
        assert post(proxy.url, BODY, {"x-session-id": str(session)})[0] == 200
    assert len(pair[0].seen) == before


def test_a_request_that_would_end_the_engine_is_refused(engines: Engines, proxies: Proxies) -> None:
    """Where an engine cannot sample with a seed, such a request gets a 400 that says what to do."""
    engine = engines()
    proxy = proxies(engine.url, e0={"refuse_seeded_sampling": True})
    status, data = post(proxy.url, BODY | {"seed": 1})
    assert (status, json.loads(data)["error"]["param"]) == (400, "seed")
    assert post(proxy.url, BODY | {"seed": 1, "temperature": 0})[0] == 200
    assert len(engine.seen) == 1


def test_health_readiness_and_metrics(engines: Engines, proxies: Proxies, tmp_path: Path) -> None:
    """Alive at once, ready when an engine is, counted by tenant and route."""
    engine = engines()
    engine.healthy = False
    proxy = proxies(engine.url, wait_for_health=False, policy_file=policy_file(tmp_path))
    assert exchange(proxy.url, "GET", "/health")[0] == 200
    assert exchange(proxy.url, "GET", "/ready")[0] == 503
    engine.healthy = True
    wait_until(lambda: exchange(proxy.url, "GET", "/ready")[0] == 200)
    post(proxy.url, BODY, {"x-api-key": "shop-key"})
    counted = (
        'paceline_proxy_requests_total{route="/v1/chat/completions",status="200",tenant="shop"} 1.0'
    )
    wait_until(lambda: counted in exchange(proxy.url, "GET", "/metrics")[1].decode())


def test_a_wrong_method_is_told_the_right_one(engines: Engines, proxies: Proxies) -> None:
    """As RFC 9110 wants it: 405 comes with ``allow``."""
    proxy = proxies(engines().url)
    for path, method in (("/v1/chat/completions", "POST"), ("/v1/models", "GET")):
        status, _, headers = exchange(proxy.url, "PATCH", path)
        assert (status, headers["allow"]) == (405, method)


def test_health_is_asked_where_the_engine_tells_it(engines: Engines, proxies: Proxies) -> None:
    """An upstream with a path of its own for it is ready by that; ``/health`` is not asked."""
    engine = engines()
    engine.health_path = "/health/liveliness"
    proxy = proxies(engine.url, e0={"health_path": "/health/liveliness"})
    assert proxy.proxy.ready
    assert not engine.seen


def test_addresses_and_files_that_cannot_work_are_refused(tmp_path: Path) -> None:
    """No policy beyond loopback, no port in use, no missing or broken policy file."""
    upstreams = [{"name": "e", "url": "http://127.0.0.1:1"}]
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0.*policy"):
        make_config(listen={"host": "0.0.0.0"}, upstreams=upstreams)  # noqa: S104  it is refused
    with pytest.raises(ConfigError, match="not unique"):
        make_config(upstreams=upstreams * 2)
    with pytest.raises(ConfigError, match="upstreams"):
        make_config(upstreams=[])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = make_config(listen={"port": taken.getsockname()[1]}, upstreams=upstreams)
        with pytest.raises(ConfigError, match="cannot listen"), running_proxy(config):
            pass
    missing = make_config(upstreams=upstreams, policy_file=tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"), running_proxy(missing):
        pass
