"""Two real engines behind the proxy: prefixes found, one hung, one dead, one drained."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from captured import metric
from embedded_server import MODEL, EmbeddedServer
from model_folders import save_model
from paceline.middleware.config import load_config, make_config
from paceline.middleware.replica import Replica
from paceline.middleware.server import RunningProxy, running_proxy
from paceline.policies.tenants import hash_key
from paceline.processes import ChildProcess, answers, free_port
from waiting import wait_until

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

COMPLETIONS = "/v1/completions"
HANGING = {"health_timeout_seconds": 1.0, "hang_looks": 2, "circuit_backoff_seconds": 0.2}
NUM_STREAMED = 1500
"""Takes some seconds, at least one."""
MOST_SECONDS = 10.0
"""What nobody may wait longer than for an engine that hangs: looks take 1.1 s each here."""


@dataclass
class Fleet:
    """Two engines, and proxies in front of them."""

    servers: list[EmbeddedServer]
    start: Callable[..., RunningProxy]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[EmbeddedServer]]:
    """A small model of random weights, served twice; a token a byte."""
    folder = tmp_path_factory.mktemp("engines")
    save_model(folder / "model", max_position_embeddings=8192)
    with ExitStack() as stack:
        made = [
            EmbeddedServer(folder / "model", folder, f"e{number}", "--no-speculation")
            for number in range(2)
        ]
        for server in made:
            server.start()
            stack.callback(server.stop)
        for server in made:
            server.wait_ready()
        yield made


@pytest.fixture
def fleet(servers: list[EmbeddedServer]) -> Iterator[Fleet]:
    """Proxies are stopped after the test, and engines go on."""
    with ExitStack() as stack:

        def start(**settings: Any) -> RunningProxy:
            upstreams = [{"name": f"e{n}", "url": s.url} for n, s in enumerate(servers)]
            config = make_config(
                listen={"port": 0},
                upstreams=settings.pop("upstreams", upstreams),
                health_interval_seconds=0.1,
                **settings,
            )
            proxy = stack.enter_context(running_proxy(config))
            wait_until(lambda: all(r.healthy for r in proxy.proxy.replicas), 30)
            return proxy

        for server in servers:
            stack.callback(server.resume)
        yield Fleet(servers, start)


def post(proxy: RunningProxy, prompt: str, **settings: Any) -> tuple[int, Any]:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 4, "temperature": 0} | settings
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=60)
    with closing(connection):
        connection.request("POST", COMPLETIONS, json.dumps(body))
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def conversations(num: int, num_turns: int, mark: str) -> Iterator[tuple[int, str]]:
    """Turns of conversations that take turns; each turn repeats what came before it."""
    texts = [f"{mark}{number} " + f"begins {number}; " * 60 for number in range(num)]
    for turn in range(num_turns):
        for number in range(num):
            texts[number] += f"turn {turn} of conversation {number} goes on; " * 20
            yield number, texts[number]


def test_prefixes_are_found_where_they_were_served(fleet: Fleet) -> None:
    """Tokens that real engines had cached: all of the turn before, where round robin finds less."""
    found: dict[str, int] = {}
    for policy in ("prefix", "round_robin"):
        proxy = fleet.start(routing={"policy": policy})
        total = 0
        before: dict[int, int] = {}
        for number, text in conversations(3, 4, policy):
            status, answer = post(proxy, text)
            assert status == 200
            cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            if policy == "prefix":
                assert cached >= before.get(number, 0)
            before[number] = len(text)
            total += cached
        found[policy] = total
        if policy == "prefix":
            hits = sum(
                metric(proxy, "paceline_proxy_prefix_hit_tokens_total", upstream=e)
                for e in ("e0", "e1")
            )
            # four bytes are counted as a token, where here each byte is one
            assert 0.8 * total <= 4 * hits <= total
    assert found["prefix"] > 1.25 * found["round_robin"]


@contextmanager
def streaming(
    url: str, *, num_tokens: int = NUM_STREAMED, **headers: str
) -> Iterator[http.client.HTTPResponse]:
    """A long stream of which one event has come."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    body = {"model": MODEL, "prompt": "stream on " * 20, "max_tokens": num_tokens, "stream": True}
    with closing(connection):
        connection.request("POST", COMPLETIONS, json.dumps(body | {"temperature": 0}), headers)
        response = connection.getresponse()
        assert response.readline().startswith(b"data: {")
        yield response


def last_error(response: http.client.HTTPResponse) -> str:
    """What the error event at the end of a stream says."""
    last = response.read().strip().rpartition(b"\n")[2]
    return str(json.loads(last.removeprefix(b"data: "))["error"]["message"])


def asked_replica(proxy: RunningProxy, prompt: str) -> Replica:
    """Send a prompt; the engine that it went to."""
    before = {r.name: placed(proxy, r) for r in proxy.proxy.replicas}
    assert post(proxy, prompt)[0] == 200
    return next(r for r in proxy.proxy.replicas if placed(proxy, r) > before[r.name])


def placed(proxy: RunningProxy, replica: Replica) -> float:
    return metric(proxy, "paceline_proxy_placements_total", upstream=replica.name)


def test_a_hanging_engine_keeps_no_client_waiting(fleet: Fleet) -> None:
    """Sent to it before it is known to hang: answered by the other; then it is not asked."""
    proxy = fleet.start(routing=HANGING)
    prompt = "the hanging one " * 100
    hanging = asked_replica(proxy, prompt)
    server = fleet.servers[int(hanging.name[1:])]
    server.pause()
    begun = time.monotonic()
    status, _ = post(proxy, prompt)
    assert status == 200
    assert time.monotonic() - begun < MOST_SECONDS
    assert metric(proxy, "paceline_proxy_upstream_given_up_total", upstream=hanging.name) == 1
    assert metric(proxy, "paceline_proxy_retries_total") == 1
    assert not hanging.healthy
    begun = time.monotonic()
    assert all(post(proxy, prompt)[0] == 200 for _ in range(3))
    assert time.monotonic() - begun < 2.0
    server.resume()
    wait_until(lambda: hanging.state in ("up", "half_open"), 20)
    changes = [
        metric(proxy, "paceline_proxy_circuit_transitions_total", upstream=hanging.name, to=to)
        for to in ("open", "half_open")
    ]
    assert min(changes) >= 1


def test_a_stream_whose_engine_hangs_ends_with_an_error_event(fleet: Fleet) -> None:
    """Long before the silence that streams are otherwise allowed, here ten minutes."""
    proxy = fleet.start(routing=HANGING)
    with streaming(proxy.url, num_tokens=6000) as response:
        hanging = next(r for r in proxy.proxy.replicas if r.outstanding)
        server = fleet.servers[int(hanging.name[1:])]
        server.pause()
        begun = time.monotonic()
        assert "its health did not answer" in last_error(response)
        assert time.monotonic() - begun < MOST_SECONDS
    server.resume()
    wait_until(lambda: hanging.healthy, 20)


def test_a_lone_engine_that_hangs_is_said_to(fleet: Fleet) -> None:
    """The client gets an error in bounded time; with the circuit open, at once and with a time."""
    lone = [{"name": "e0", "url": fleet.servers[0].url}]
    proxy = fleet.start(upstreams=lone, routing=HANGING | {"circuit_backoff_seconds": 20.0})
    fleet.servers[0].pause()
    begun = time.monotonic()
    status, answer = post(proxy, "hello")
    assert time.monotonic() - begun < MOST_SECONDS
    assert (status, answer["error"]["code"]) == (502, "upstream_error")
    begun = time.monotonic()
    status, answer = post(proxy, "hello")
    assert time.monotonic() - begun < 1.0
    assert (status, answer["error"]["code"]) == (503, "engine_unavailable")
    assert "left alone" in answer["error"]["message"]
    fleet.servers[0].resume()
    wait_until(lambda: proxy.proxy.ready, 20)
    assert post(proxy, "hello")[0] == 200


def test_a_dead_engine_loses_nothing_but_its_cache(fleet: Fleet) -> None:
    """All requests are answered while it is gone; what it held is forgotten; it comes back."""
    proxy = fleet.start()
    prompt = "the dying one " * 100
    dying = asked_replica(proxy, prompt)
    assert len(dying.prefixes) > 0
    server = fleet.servers[int(dying.name[1:])]
    server.kill()
    assert all(post(proxy, prompt)[0] == 200 for _ in range(5))
    wait_until(lambda: not dying.healthy)
    assert len(dying.prefixes) == 0
    server.start()
    server.wait_ready()
    wait_until(lambda: dying.state in ("up", "half_open"))
    assert post(proxy, prompt)[0] == 200


def entry(server: EmbeddedServer, name: str, **settings: Any) -> dict[str, Any]:
    return {"name": name, "url": server.url, **settings}


def write(path: Path, upstreams: list[dict[str, Any]], **settings: Any) -> None:
    """A whole file at once, as an operator's rename does it."""
    fresh = path.with_suffix(".new")
    told = {"listen": {"port": 0}, "health_interval_seconds": 0.1}
    fresh.write_text(json.dumps(told | {"upstreams": upstreams} | settings))
    fresh.rename(path)


@pytest.fixture
def followed(fleet: Fleet, tmp_path: Path) -> Iterator[tuple[RunningProxy, Path]]:
    """A proxy that follows its file, in which there is the first engine alone."""
    path = tmp_path / "proxy.yaml"
    write(path, [entry(fleet.servers[0], "e0")])
    with running_proxy(load_config(path), config_file=path) as proxy:
        wait_until(lambda: proxy.proxy.ready, 20)
        yield proxy, path


def states(proxy: RunningProxy) -> dict[str, str]:
    return {replica.name: replica.state for replica in proxy.proxy.replicas}


def test_engines_come_and_go_by_the_file_alone(
    fleet: Fleet, followed: tuple[RunningProxy, Path]
) -> None:
    """The stream of one that is taken out goes on to its end; new requests go to the new one."""
    proxy, path = followed
    with streaming(proxy.url) as response:
        write(path, [entry(fleet.servers[1], "e1")])
        wait_until(lambda: states(proxy) == {"e1": "up"})
        assert post(proxy, "hello")[0] == 200
        assert metric(proxy, "paceline_proxy_placements_total", upstream="e1") == 1
        assert metric(proxy, "paceline_proxy_upstream_healthy", upstream="e0") == 0
        status, shown = admin(proxy, "GET", "")
        assert (status, [u["state"] for u in shown["upstreams"]]) == (200, ["up", "leaving"])
        assert b"error" not in (rest := response.read())
        assert rest.endswith(b"data: [DONE]\n\n")
    wait_until(lambda: admin(proxy, "GET", "")[1]["upstreams"][1:] == [])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("upstreams: [{name: e1", "is not YAML"),
        ("upstreams: []", "at least 1 item"),
        ('upstreams: [{name: e1, url: "ftp://x"}]', "url"),
        ("upstreams: [{name: a, url: 'http://a'}, {name: a, url: 'http://b'}]", "not unique"),
    ],
)
def test_a_wrong_file_changes_nothing_and_says_why(
    followed: tuple[RunningProxy, Path], caplog: pytest.LogCaptureFixture, text: str, why: str
) -> None:
    """Refused as a whole, counted, and logged with its path."""
    proxy, path = followed
    path.write_text(text)
    refused = "paceline_proxy_upstreams_reloads_total"
    wait_until(lambda: metric(proxy, refused, result="refused") == 1)
    assert states(proxy) == {"e0": "up"}
    assert post(proxy, "hello")[0] == 200
    [message] = [r.getMessage() for r in caplog.records if "stays as it was" in r.getMessage()]
    assert why in message
    assert str(path) in message


def test_other_changes_of_the_file_want_a_restart(
    fleet: Fleet, followed: tuple[RunningProxy, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Upstreams are taken over, and the log names what is not."""
    proxy, path = followed
    write(path, [entry(s, f"e{n}") for n, s in enumerate(fleet.servers)], max_body_bytes=2)
    wait_until(lambda: states(proxy) == {"e0": "up", "e1": "up"})
    assert post(proxy, "hello")[0] == 200
    assert "changes of max_body_bytes in" in caplog.text


def admin(
    proxy: RunningProxy, method: str, path: str, **headers: str
) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(proxy.url.removeprefix("http://"), timeout=20)
    with closing(connection):
        connection.request(method, f"/admin/upstreams{path}", headers=headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def test_an_engine_drains_by_the_file_or_by_an_operator(fleet: Fleet, tmp_path: Path) -> None:
    """It finishes its stream, gets nothing new, not even its own sessions, and can be resumed."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        json.dumps(
            {
                "tenants": [{"name": "shop", "keys": [hash_key("shop")]}],
                "admin_keys": [hash_key("boss")],
            }
        )
    )
    proxy = fleet.start(policy_file=policy)
    boss, shop = {"x-api-key": "boss"}, {"x-api-key": "shop"}
    assert admin(proxy, "GET", "")[0] == admin(proxy, "GET", "", **shop)[0] == 401
    with streaming(proxy.url, **shop) as response:
        busy = next(r for r in proxy.proxy.replicas if r.outstanding)
        status, shown = admin(proxy, "POST", f"/{busy.name}/drain", **boss)
        assert status == 200
        [told] = [u for u in shown["upstreams"] if u["name"] == busy.name]
        assert (told["state"], told["outstanding"], told["drained_by"]) == ("draining", 1, "admin")
        before = metric(proxy, "paceline_proxy_placements_total", upstream=busy.name)
        with streaming(proxy.url, **shop) as other:  # the same prompt, which it holds
            assert metric(proxy, "paceline_proxy_placements_total", upstream=busy.name) == before
            assert other.read().endswith(b"data: [DONE]\n\n")
        assert response.read().endswith(b"data: [DONE]\n\n")
    wait_until(lambda: busy.outstanding == 0)
    assert admin(proxy, "POST", f"/{busy.name}/resume", **boss)[0] == 200
    assert busy.state == "up"
    for path, method, code in (("/nobody/drain", "POST", 404), ("/e0/stop", "POST", 404)):
        assert admin(proxy, method, path, **boss)[0] == code
    assert admin(proxy, "POST", "", **boss)[0] == admin(proxy, "GET", "/e0/drain", **boss)[0] == 405
    upstreams = [entry(s, f"e{n}", draining=n == 0) for n, s in enumerate(fleet.servers)]
    drained = fleet.start(upstreams=upstreams)
    assert all(post(drained, "hello")[0] == 200 for _ in range(4))
    assert metric(drained, "paceline_proxy_placements_total", upstream="e0") == 0
    assert admin(drained, "POST", "/e0/resume")[1]["upstreams"][0]["drained_by"] == "file"


@pytest.mark.parametrize(("grace", "num_tokens"), [(60.0, 300), (0.3, 6000)])
def test_a_proxy_that_is_stopped_finishes_its_streams(
    fleet: Fleet, tmp_path: Path, grace: float, num_tokens: int
) -> None:
    """SIGTERM: no new connections, streams go on; after the grace they end with an error event."""
    path, port = tmp_path / "proxy.yaml", free_port()
    listen = {"port": port}
    write(path, [entry(fleet.servers[0], "e0")], listen=listen, shutdown_grace_seconds=grace)
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "paceline.middleware.cli", "proxy", "--config", str(path)]
    with ChildProcess("proxy", command, log=tmp_path / "proxy.log") as process:
        process.wait_until(lambda: answers(f"{url}/ready"), timeout_seconds=60)
        with streaming(url, num_tokens=num_tokens) as response:
            os.kill(process.pid, signal.SIGTERM)
            if grace < 1:
                assert "the proxy is stopping" in last_error(response)
            else:
                assert response.read().endswith(b"data: [DONE]\n\n")
        assert not answers(f"{url}/health")
        assert process.wait() in (0, -signal.SIGTERM)
