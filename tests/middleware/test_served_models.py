"""Engines of different models behind one proxy: each request goes to one that serves its model."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest

from captured import metric
from paceline.middleware.config import make_config
from paceline.middleware.request_body import view_body
from paceline.middleware.served_models import joined_models, read_models
from paceline.middleware.server import RunningProxy, running_proxy
from served_engine import served_engine
from waiting import wait_until

CHAT = "/v1/chat/completions"
MODELS = ("small", "large", "small")
"""What the engines serve, by their numbers."""


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningProxy]:
    """Three engines of two models, and one that nobody can reach."""
    with ExitStack() as exits:
        upstreams = [{"name": "gone", "url": "http://127.0.0.1:9"}]
        for number, model in enumerate(MODELS):
            folder = tmp_path_factory.mktemp(f"engine-{number}")
            engine = exits.enter_context(served_engine(folder, name=model))
            upstreams.append({"name": f"e{number}", "url": engine.url})
        config = make_config(
            listen={"port": 0},
            upstreams=upstreams[1:] + upstreams[:1],
            routing={"policy": "round_robin"},
            health_interval_seconds=0.1,
            connect_timeout_seconds=0.5,
        )
        proxy = exits.enter_context(running_proxy(config))
        wait_until(lambda: all(r.healthy for r in proxy.proxy.replicas[:3]))
        yield proxy


def ask(proxy: RunningProxy, path: str, body: Any = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=60)
    with closing(connection):
        connection.request("GET" if body is None else "POST", path, body and json.dumps(body))
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def chat(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "w1"}], "max_tokens": 2}


def asked(proxy: RunningProxy) -> list[float]:
    """Requests that each engine was sent."""
    name = "paceline_proxy_placements_total"
    return [metric(proxy, name, upstream=f"e{number}") for number in range(len(MODELS))]


def test_a_request_goes_to_those_that_serve_its_model(proxy: RunningProxy) -> None:
    """By turns where two do; none is refused, whoever cannot be reached."""
    before = asked(proxy)
    for _ in range(4):
        for model in ("small", "large"):
            status, answer = ask(proxy, CHAT, chat(model))
            assert (status, answer["model"]) == (200, model)
    assert [now - then for now, then in zip(asked(proxy), before, strict=True)] == [2, 4, 2]


def test_the_list_of_models_has_all_of_them(proxy: RunningProxy) -> None:
    """Each once, as its engine tells of it, and each can be asked for by itself."""
    status, listed = ask(proxy, "/v1/models")
    assert status == 200
    assert listed["object"] == "list"
    assert [each["id"] for each in listed["data"]] == ["small", "large"]
    for each in listed["data"]:
        status, alone = ask(proxy, f"/v1/models/{each['id']}")
        assert (status, alone["id"], alone.keys()) == (200, each["id"], each.keys())


def test_an_operator_sees_what_each_serves(proxy: RunningProxy) -> None:
    """Nothing of one that has not told."""
    status, shown = ask(proxy, "/admin/upstreams")
    assert status == 200
    told = {each["name"]: each["models"] for each in shown["upstreams"]}
    assert told == {"e0": ["small"], "e1": ["large"], "e2": ["small"], "gone": None}


def test_while_none_that_serves_a_model_can_be_asked_others_are_not(proxy: RunningProxy) -> None:
    """A 503 that names those that do, and comes again; the other model is served."""
    replicas = proxy.proxy.replicas
    replicas[1].drained = replicas[3].drained = True
    try:
        status, answer = ask(proxy, CHAT, chat("large"))
        assert status == 503
        assert answer["error"]["message"].startswith(
            "no engine can be asked: e1 is draining, gone is draining; "
        )
        assert ask(proxy, CHAT, chat("small"))[0] == 200
        status, listed = ask(proxy, "/v1/models")
        assert (status, [each["id"] for each in listed["data"]]) == (200, ["small"])
    finally:
        replicas[1].drained = replicas[3].drained = False


def test_a_model_that_nobody_serves_is_refused_by_an_engine(proxy: RunningProxy) -> None:
    """In the engine's own words; engines are asked again what they serve."""
    gone = proxy.proxy.replicas[3]
    gone.drained = True
    gone.models = {}
    for replica in proxy.proxy.replicas[:3]:
        replica.models = None
    try:
        status, answer = ask(proxy, CHAT, chat("nobody"))
        assert (status, "nobody" in answer["error"]["message"]) == (404, True)
        wait_until(lambda: all(r.models is not None for r in proxy.proxy.replicas[:3]))
        status, answer = ask(proxy, CHAT, chat("nobody"))
        assert (status, "nobody" in answer["error"]["message"]) == (404, True)
    finally:
        gone.drained, gone.models = False, None


def test_what_is_no_list_tells_nothing() -> None:
    """Then an engine is taken to serve whatever is asked for."""
    for body in (b"", b"[]", b'{"data": 3}', b'{"data": [{"name": "a"}]}', b"<html>"):
        assert read_models(body) is None
    assert read_models(b'{"data": []}') == {}


def test_lists_are_joined_where_they_differ() -> None:
    """By the first that tells of a model; equal names, told otherwise, are no difference."""
    one = read_models(b'{"data": [{"id": "a", "n": 1}, {"id": "b"}]}')
    same = read_models(b'{"data": [{"id": "b"}, {"id": "a", "n": 2}]}')
    other = read_models(b'{"data": [{"id": "c"}, {"id": "a", "n": 3}]}')
    assert one is not None
    assert same is not None
    assert other is not None
    assert joined_models([]) is None
    assert joined_models([one, same]) is None
    joined = joined_models([one, other])
    assert joined is not None
    told = json.loads(joined)
    assert told["object"] == "list"
    assert sorted(told["data"], key=lambda each: str(each["id"])) == [
        {"id": "a", "n": 1},
        {"id": "b"},
        {"id": "c"},
    ]


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"model": "a/b"}', "a/b"),
        (b'{"model": "\\u00e9"}', "\u00e9"),
        (b'{"model": 3}', ""),
        (b'{"model": null}', ""),
        (b"{}", ""),
    ],
)
def test_the_name_of_a_model(body: bytes, name: str) -> None:
    """What is no text names none; the engine says what is wrong with it."""
    assert view_body(body).model_name == name
