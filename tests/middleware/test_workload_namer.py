"""Workloads named by their wording, in real proxies on a real Redis; engines are scripted."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry

from paceline.caches.governance import MemoryGovernor
from paceline.caches.workload_store import Position, WorkloadStore
from paceline.errors import ConfigError, JournalError
from paceline.middleware.cli import cli
from paceline.middleware.config import load_config, make_config
from paceline.middleware.request_body import text_of
from paceline.middleware.workload_namer import namer_of, text_name
from paceline.policies.tenants import hash_key
from paceline.policies.workload import workload_of
from redis_server import RedisServer
from waiting import wait_until

pytestmark = pytest.mark.redis

Engines = Callable[..., Any]
Proxies = Callable[..., Any]

PATIENT = {"wait_milliseconds": 1000}
POLICY = (
    "You are a travel agent of an airline. You book, change and cancel flights, and explain what "
    "each of these costs. Ask for the user's id first. Refuse what the policy does not allow. "
) * 4
CANARY = "zebra-cassowary-quokka"


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def question(subject: str) -> dict[str, str]:
    return user(f'Query: "{subject}". Write one SQL statement, generate no output, no reward.')


def ask(
    running: Any, *messages: dict[str, str], key: str = "", headers: dict[str, str] | None = None
) -> None:
    connection = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=20)
    body = json.dumps({"model": "m", "messages": messages}).encode()
    keys = {"authorization": f"Bearer {key}"} if key else {}
    connection.request("POST", "/v1/chat/completions", body, {**keys, **(headers or {})})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    response.read()
    connection.close()


def named(engine: Any) -> str:
    """What the engine was told of its last request."""
    return str(engine.seen[-1].json["vllm_xargs"]["paceline_workload"])


def warm(running: Any) -> None:
    """Wait until names come: scikit-learn is imported beside the serving."""

    def is_named() -> bool:
        ask(running, user("Good morning, is anybody awake?"))
        return metric(running, 'names_total{by="cluster"}') > 0

    wait_until(is_named, 60)


def metric(running: Any, name: str) -> float:
    text = running.proxy.metrics.render().decode()
    lines = (line.rpartition(" ") for line in text.splitlines())
    return sum(float(v) for n, _, v in lines if n == f"paceline_proxy_workload_{name}")


def test_requests_without_a_prompt_are_named_by_their_text(
    engines: Engines, proxies: Proxies, redis_server: RedisServer
) -> None:
    """Questions of one template have one name, in two proxies, from the first request on."""
    engine = engines()
    a, b = (
        proxies(engine.url, workloads={"redis_url": redis_server.url, **PATIENT}) for _ in range(2)
    )
    for running in (a, b):
        warm(running)
    ask(a, question("How many singers are there?"))
    first = named(engine)
    assert first == text_name(
        "tenant:local", json.dumps(question("How many singers are there?")["content"]).encode()
    )
    ask(b, question("Which city has the most airports?"))
    assert named(engine) == first
    ask(a, user("Please cancel my flight to Rome, the code is EHGLP3."))
    assert named(engine) not in ("", first)
    ask(a, question("anything"), headers={"x-paceline-workload": "sql"})
    assert named(engine) == "sql"
    assert metric(a, 'names_total{by="header"}') == 1
    assert metric(a, "clusters") == 3
    assert metric(a, "local_clusters") == 0
    assert metric(a, "shared") == 1


def test_prompts_that_differ_in_details_have_the_first_ones_name(
    engines: Engines, proxies: Proxies, redis_server: RedisServer
) -> None:
    """The founder keeps its fingerprint; `near_prompts: false` leaves each prompt its own."""
    engine = engines()
    url = {"redis_url": redis_server.url, **PATIENT}
    near, exact = (
        proxies(engine.url, workloads={**url, **more}) for more in ({}, {"near_prompts": False})
    )
    for running in (near, exact):
        warm(running)
    dated = [f"Today is the {day}. of May. {POLICY}" for day in ("first", "second", "third")]
    own = [workload_of(header=None, system=json.dumps(text).encode(), tools=b"") for text in dated]
    found = []
    for text in dated:
        ask(near, system(text), user("hi"))
        found.append(named(engine))
    assert found == [own[0]] * 3
    ask(near, system("You write patches for a repository and run its tests."), user("hi"))
    assert named(engine) not in own
    for text, name in zip(dated, own, strict=True):
        ask(exact, system(text), user("hi"))
        assert named(engine) == name


def test_who_is_not_recorded_and_who_has_no_workload_tier_teaches_nothing(
    engines: Engines, proxies: Proxies, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Nor do tenants learn of each other: the same text has another name in another scope."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "tenants:\n"
        f"  - {{name: a, keys: ['{hash_key('a')}']}}\n"
        f"  - {{name: b, keys: ['{hash_key('b')}']}}\n"
        f"  - {{name: silent, keys: ['{hash_key('silent')}'], record: false}}\n"
        f"  - {{name: flat, keys: ['{hash_key('flat')}'], memory: {{workload: false}}}}\n"
    )
    engine = engines()
    running = proxies(
        engine.url, policy_file=policy, workloads={"redis_url": redis_server.url, **PATIENT}
    )
    wait_until(lambda: _is_named(running, engine, "a"), 60)
    for key in ("silent", "flat"):
        ask(running, question("How many?"), key=key)
        assert named(engine) == ""
    ask(running, question("How many?"), key="a", headers={"x-paceline-record": "off"})
    assert named(engine) == ""
    ask(running, question("How many?"), key="a")
    of_a = named(engine)
    ask(running, question("How many?"), key="a", headers={"x-paceline-record": "off"})
    assert named(engine) == of_a
    ask(running, question("How many?"), key="b")
    assert named(engine) not in ("", of_a)
    with redis_server.client() as client:
        assert [s.scope for s in WorkloadStore(client).stored()] == ["tenant:a", "tenant:b"]


def _is_named(running: Any, engine: Any, key: str) -> bool:
    ask(running, user("Good morning, is anybody awake?"), key=key)
    return named(engine) != ""


def test_a_request_does_not_wait_longer_than_it_is_told_to(
    engines: Engines, proxies: Proxies, redis_server: RedisServer
) -> None:
    """Without a wait the first request goes on nameless and the next turn has the name."""
    engine = engines()
    running = proxies(engine.url, workloads={"redis_url": redis_server.url, "wait_milliseconds": 0})
    ask(running, question("first"))
    assert named(engine) == ""

    def next_turn() -> bool:
        ask(running, question("first"), {"role": "assistant", "content": "SELECT"}, user("more"))
        return named(engine) != ""

    wait_until(next_turn, 60)


def test_the_kinds_are_listed_and_no_text_is_in_redis(
    engines: Engines, proxies: Proxies, redis_server: RedisServer
) -> None:
    """Counts, examples' fingerprints and last use are shown; forgetting the tenant ends them."""
    engine = engines()
    running = proxies(engine.url, workloads={"redis_url": redis_server.url, **PATIENT})
    warm(running)
    for text in (f"{CANARY} is what I want", f"{CANARY} is what I wanted", f"{CANARY} is it"):
        ask(running, user(text))
    name = named(engine)
    ask(running, system(f"{POLICY} {CANARY}"), user("hi"))
    prompt = named(engine)

    def kinds(*options: str) -> Any:
        done = CliRunner().invoke(
            cli, ["workload", "list", "--redis", redis_server.url, *options], catch_exceptions=False
        )
        assert done.exit_code == 0, done.output
        return done.stdout

    def shown() -> dict[str, Any]:
        return {kind["name"]: kind for kind in json.loads(kinds("--json"))}

    wait_until(lambda: shown().get(name, {}).get("requests") == 3)
    kind = shown()[name]
    assert (kind["scope"], kind["tenants"], kind["told_by"]) == ("tenant:local", ["local"], "text")
    assert (kind["texts"], len(kind["examples"])) == (3, 3)
    assert name.endswith(kind["examples"][0])
    assert shown()[prompt]["told_by"] == "prompt"
    text = kinds("--tenant", "local")
    assert f"{name}  3 requests of 3 texts (text)" in text
    assert "no kinds of work are known of nobody" in kinds("--tenant", "nobody")
    assert not [word for word in CANARY.split("-") if word.encode() in dump(redis_server)]
    with redis_server.client() as client:
        MemoryGovernor(client).forget(tenant="local")
    assert "no kinds" in kinds()
    wait_until(lambda: metric(running, "clusters") == 0)
    assert b"local" not in dump(redis_server)
    ask(running, user(f"{CANARY} is it"))
    assert named(engine) == text_name("tenant:local", json.dumps(f"{CANARY} is it").encode())


def dump(server: RedisServer) -> bytes:
    """Every key and value."""
    found = []
    with server.client() as client:
        for key in client.scan_iter("*"):
            found.append(key)
            read = {b"hash": client.hgetall, b"set": client.smembers}.get(client.type(key))
            value = read(key) if read else client.zrange(key, 0, -1, withscores=True)
            found.append(repr(value).encode())
            if isinstance(value, dict):
                found += value.values()
    return b"\n".join(found)


def test_redis_that_comes_and_goes_costs_no_request(
    engines: Engines, proxies: Proxies, start_redis: Callable[..., RedisServer]
) -> None:
    """Names come while it is away and are in Redis when it is back."""
    server = start_redis()
    server.kill()
    engine = engines()
    running = proxies(engine.url, workloads={"redis_url": server.url, **PATIENT})
    warm(running)
    ask(running, question("one"))
    name = named(engine)
    assert name
    assert metric(running, "local_clusters") == 2
    assert metric(running, "shared") == 0
    server.start()
    wait_until(lambda: metric(running, "local_clusters") == 0, 20)
    with server.client() as client:
        assert name in WorkloadStore(client).sync("tenant:local", Position()).put


def test_a_broken_scikit_learn_costs_no_request(
    engines: Engines, proxies: Proxies, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy serves on with fingerprints, and says so in its metrics."""

    def broken() -> None:
        raise ImportError("a library of it is missing")

    monkeypatch.setattr("paceline.middleware.workload_namer.TextFeatures", broken)
    engine = engines()
    running = proxies(engine.url, workloads={"clusters": True, **PATIENT})
    wait_until(lambda: metric(running, 'dropped_total{reason="failed"}') == 1)
    ask(running, user("hi"))
    assert named(engine) == ""
    ask(running, system("You are brief."), user("hi"))
    assert named(engine) == workload_of(header=None, system=b'"You are brief."', tools=b"")
    assert metric(running, 'names_total{by="fingerprint"}') == 1


def test_when_clusters_are_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On where a Redis is named for them, or asked for; an error without scikit-learn then."""
    upstreams = [{"name": "e", "url": "http://127.0.0.1:9"}]
    capture = {"redis_url": "redis://h:1", "model": "m", "tokenizer": "t"}

    def is_on(**settings: Any) -> bool:
        config = make_config(upstreams=upstreams, **settings)
        return namer_of(config, None, CollectorRegistry()) is not None

    assert not is_on()
    assert not is_on(workloads={"clusters": False, "redis_url": "redis://h:1"})
    assert is_on(workloads={"clusters": True})
    assert is_on(workloads={"redis_url": "redis://h:1"})
    assert not is_on(capture=capture)
    with pytest.raises(JournalError, match="not a Redis URL"):
        is_on(workloads={"redis_url": "http://h"})
    file = tmp_path / "proxy.yaml"
    file.write_text("upstreams: [{name: e, url: 'http://h'}]\nworkloads: {max_clusters: 0}\n")
    with pytest.raises(ConfigError, match=r"workloads.max_clusters.*it is 0"):
        load_config(file)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setattr("paceline.middleware.workload_namer.find_spec", lambda _: None)
    assert not is_on()
    with pytest.raises(ConfigError, match="scikit-learn"):
        is_on(workloads={"clusters": True})


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'"plain"', "plain"),
        (b'[{"type": "text", "text": "a"}, {"type": "image_url"}, {"text": "b"}, 1]', "a\nb"),
        (b'[{"text": 1}]', ""),
        (b"null", ""),
        (b"", ""),
        (b"{", ""),
    ],
)
def test_text_of_a_message(content: bytes, text: str) -> None:
    """Strings and parts are read, everything else has no text."""
    assert text_of(content) == text
