"""What a client is told of the engine's decisions, and to whom: an engine scripted to misbehave."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from captured import metric
from paceline.adapters.decisions import DECISIONS_PATH, RequestDecisions, SourceTokens
from paceline.adapters.identity import new_request_id
from paceline.api_errors import ApiError
from paceline.errors import ConfigError
from paceline.middleware.config import make_config
from paceline.middleware.exchange import Exchange
from paceline.middleware.explaining import (
    MAX_REMEMBERED,
    REMEMBERED_SECONDS,
    RESULTS,
    Explainer,
    headers_of,
)
from paceline.policies.tenants import hash_key

CHAT = "/v1/chat/completions"
BODY: Any = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
EXPLAIN = {"x-paceline-explain": "on"}
TOLD = "paceline_proxy_explained_total"

Engines = Callable[..., Any]
Proxies = Callable[..., Any]


def ask(
    proxy: Any, headers: dict[str, str], method: str = "POST", path: str = CHAT, body: Any = BODY
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=60)
    data = json.dumps(body) if method == "POST" else None
    connection.request(method, path, data, headers)
    response = connection.getresponse()
    answer = response.status, dict(response.getheaders()), response.read()
    connection.close()
    return answer


def told_by(head: dict[str, str]) -> set[str]:
    """Headers that only an engine's record gives."""
    names = ("rounds", "draft-tokens", "accepted-tokens", "draft-sources", "reason", "arm")
    return {name for name in names if f"x-paceline-{name}" in head}


def engine_that_says(engines: Engines, make: Callable[[str], bytes | None]) -> Any:
    """Answers a chat, and for its record what `make` makes of the id; for None never."""

    async def script(request: Any, reader: Any, writer: Any) -> None:
        body = b'{"id":"1","choices":[]}'
        if request.path.startswith(DECISIONS_PATH):
            made = make(request.path.removeprefix(DECISIONS_PATH))
            if made is None:
                await engine.wait_until_left(reader)
                return
            body = made
        status = b"404 Not Found" if body == b"{}" else b"200 OK"
        writer.write(
            b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (status, len(body), body)
        )

    engine = engines(script)
    return engine


def record(request_id: str, **changes: Any) -> bytes:
    whole = {"request_id": request_id, "is_finished": True, "rounds": 7, "reason": "because"}
    return json.dumps(whole | changes).encode()


@pytest.mark.parametrize(
    ("make", "result"),
    [
        (lambda _: None, "late"),
        (lambda _: b"{}", "unknown"),
        (lambda _: b"oops", "unreadable"),
        (lambda i: record(i, version=99), "unreadable"),
        (lambda i: record(i, rounds="many"), "unreadable"),
        (lambda _: record(new_request_id()), "unreadable"),
        (lambda i: record(i, reason="x" * 20_000), "unreadable"),
    ],
    ids=["never", "not found", "no JSON", "newer", "other types", "another's", "too long"],
)
def test_an_engine_that_does_not_tell_costs_its_headers_alone(
    engines: Engines, proxies: Proxies, make: Callable[[str], bytes | None], result: str
) -> None:
    """The answer goes out with what the policy decided; a counter says what came of asking."""
    engine = engine_that_says(engines, make)
    proxy = proxies(engine.url, e0={"decisions_url": engine.url})
    status, head, body = ask(proxy, EXPLAIN)
    assert (status, json.loads(body)) == (200, {"id": "1", "choices": []})
    assert head["x-paceline-tenant"] == "local"
    assert head["x-paceline-request-id"] == head["x-request-id"]
    assert not told_by(head)
    assert {name: metric(proxy, TOLD, result=name) for name in RESULTS} == {
        name: float(name == result) for name in RESULTS
    }
    status, _, body = ask(proxy, {}, "GET", DECISIONS_PATH + head["x-paceline-request-id"])
    assert status == (404 if result == "unknown" else 503)
    assert json.loads(body)["error"]["code"]


def test_an_engine_that_is_not_there_costs_its_headers_alone(
    engines: Engines, proxies: Proxies
) -> None:
    """Where nothing listens, and where no address is configured, the answer is the same."""
    engine = engines()
    gone = proxies(engine.url, e0={"decisions_url": "http://127.0.0.1:9"})
    unknown = proxies(engine.url)
    for proxy, result in ((gone, "failed"), (unknown, "no_url")):
        status, head, _ = ask(proxy, EXPLAIN)
        assert (status, told_by(head)) == (200, set())
        assert metric(proxy, TOLD, result=result) == metric(proxy, TOLD) == 1


def test_who_does_not_ask_costs_nothing(engines: Engines, proxies: Proxies) -> None:
    """Without the header no engine is asked, nothing is remembered and nothing is told."""
    engine = engine_that_says(engines, record)
    proxy = proxies(engine.url, e0={"decisions_url": engine.url})
    _, head, _ = ask(proxy, {})
    assert not any(name.startswith("x-paceline") for name in head)
    assert [seen.path for seen in engine.seen] == [CHAT]
    assert ask(proxy, {}, "GET", DECISIONS_PATH + head["x-request-id"])[0] == 404
    assert not proxy.proxy._explainer._asked
    assert metric(proxy, TOLD) == 0
    assert told_by(ask(proxy, EXPLAIN)[1]) == {
        *("rounds", "draft-tokens", "accepted-tokens", "draft-sources", "reason")
    }


def two_tenants(folder: Path) -> Path:
    path = folder / "policy.yaml"
    tenants = [{"name": name, "keys": [hash_key(name)]} for name in ("red", "blue")]
    sealed = {"name": "sealed", "keys": [hash_key("sealed")], "side_channel": "aggregate"}
    path.write_text(json.dumps({"tenants": [*tenants, sealed]}))
    return path


def test_only_who_asked_a_request_is_told_of_it(
    engines: Engines, proxies: Proxies, tmp_path: Path
) -> None:
    """Another tenant gets, byte for byte, what it would get for an id that there never was."""
    engine = engine_that_says(engines, record)
    proxy = proxies(engine.url, e0={"decisions_url": engine.url}, policy_file=two_tenants(tmp_path))
    _, head, _ = ask(proxy, {"x-api-key": "red", **EXPLAIN})
    path = DECISIONS_PATH + head["x-paceline-request-id"]
    num_asked = len(engine.seen)
    status, _, body = ask(proxy, {"x-api-key": "red"}, "GET", path)
    assert (status, json.loads(body)["rounds"]) == (200, 7)
    assert len(engine.seen) == num_asked + 1
    unknown = ask(proxy, {"x-api-key": "blue"}, "GET", DECISIONS_PATH + new_request_id())
    assert unknown[0] == 404
    for other in (path, DECISIONS_PATH, DECISIONS_PATH + "../health", path + "/"):
        status, head, body = ask(proxy, {"x-api-key": "blue"}, "GET", other)
        assert (status, body) == (unknown[0], unknown[2])
        assert head.keys() == unknown[1].keys()
    assert ask(proxy, {}, "GET", path)[0] == 401
    assert ask(proxy, {"x-api-key": "red"}, "POST", path)[0] == 405
    assert len(engine.seen) == num_asked + 1  # nobody else's question reached the engine


def test_what_shaping_hides_is_not_told(engines: Engines, proxies: Proxies, tmp_path: Path) -> None:
    """A tenant whose answers are shaped gets no numbers that lie in them in the clear."""
    engine = engine_that_says(engines, record)
    proxy = proxies(engine.url, e0={"decisions_url": engine.url}, policy_file=two_tenants(tmp_path))
    status, head, _ = ask(proxy, {"x-api-key": "sealed", **EXPLAIN})
    assert (status, head["x-paceline-tenant"], told_by(head)) == (200, "sealed", set())
    path = DECISIONS_PATH + head["x-paceline-request-id"]
    assert ask(proxy, {"x-api-key": "sealed"}, "GET", path)[0] == 404
    assert all(seen.path == CHAT for seen in engine.seen)


def test_an_engines_words_cannot_break_a_head() -> None:
    """Line ends, other alphabets and endless reasons become harmless; empty values are left out."""
    made = RequestDecisions(
        request_id="x",
        is_finished=True,
        rounds=3,
        sources={"session": SourceTokens(4, 3), "model": SourceTokens(2, 0)},
        reason="no\r\nset-cookie: a=b é " + "y" * 1000,
    )
    headers = dict(headers_of(made))
    assert headers[b"x-paceline-draft-sources"] == b"session=3/4, model=0/2"
    assert headers[b"x-paceline-reason"].startswith(b"no??set-cookie: a=b ? yyy")
    assert len(headers[b"x-paceline-reason"]) == 300
    assert b"x-paceline-arm" not in headers


def test_what_is_remembered_is_bounded() -> None:
    """In number by the newest, in time by each one's own age."""
    now = 0.0
    explainer = Explainer(CollectorRegistry(), clock=lambda: now)
    for number in range(MAX_REMEMBERED + 2):
        explainer.expect(str(number), "red")
    assert len(explainer._asked) == MAX_REMEMBERED
    assert "1" not in explainer._asked
    now = REMEMBERED_SECONDS + 1

    async def nothing(*_: Any) -> Any:
        raise AssertionError

    scope = {"method": "GET", "path": f"{DECISIONS_PATH}9", "headers": []}
    answering = explainer.answer(Exchange(scope, nothing, nothing), "red")
    with pytest.raises(ApiError) as refused:
        answering.send(None)
    assert refused.value.status == 404
    explainer.expect("new", "red")
    assert list(explainer._asked) == ["new"]


@pytest.mark.parametrize("url", ["ftp://a", "http://a/metrics", "a:1"])
def test_a_wrong_address_is_refused(url: str) -> None:
    """It is a base URL, as the engine's is."""
    upstream = {"name": "a", "url": "http://b", "decisions_url": url}
    with pytest.raises(ConfigError, match="decisions_url"):
        make_config(upstreams=[upstream])
