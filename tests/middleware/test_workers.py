"""`paceline proxy --workers 2` as a user runs it: real processes, a real Redis, a real engine."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from captured import metric_in
from paceline.middleware.cli import cli
from paceline.policies.tenants import hash_key
from paceline.processes import ChildProcess, ProcessError
from redis_server import RedisServer
from served_engine import ServedEngine, served_engine
from waiting import wait_until

pytestmark = [pytest.mark.redis, pytest.mark.timeout(300)]

CHAT = "/v1/chat/completions"
NUM_WORKERS = 2
REQUESTS_A_MINUTE = 10
AT_A_TIME = 3
LONG = 3000
ENDLESS = 60_000
"""Tokens of a stream that is still under way when its test ends."""
REQUESTS = "paceline_proxy_requests_total"


class RunningWorkers:
    """A proxy of two workers, its files in `folder`."""

    def __init__(self, folder: Path, engine: ServedEngine, redis: RedisServer) -> None:
        folder.mkdir(exist_ok=True)
        self.policy = folder / "policy.yaml"
        self.log = folder / "proxy.log"
        self.write_policy()
        config = {
            "listen": {"port": 0},
            "upstreams": [{"name": "e", "url": engine.url, "decisions_url": engine.url}],
            "policy_file": "policy.yaml",
            "limits": {"redis_url": redis.url},
            "health_interval_seconds": 0.1,
            "shutdown_grace_seconds": 60,
        }
        (folder / "proxy.yaml").write_text(json.dumps(config))
        command = [sys.executable, "-m", "paceline.middleware.cli", "proxy", "--config"]
        command += [str(folder / "proxy.yaml"), "--workers", str(NUM_WORKERS)]
        self.process = ChildProcess("the proxy", command, log=self.log)

    def write_policy(self, *more: str) -> None:
        """All tenants, and some more without limits."""
        tenants: list[dict[str, Any]] = [
            {"name": name, "keys": [hash_key(name)]} for name in ("free", "other", *more)
        ]
        for name, limits in (
            ("counted", {"requests_per_minute": REQUESTS_A_MINUTE}),
            ("slots", {"concurrency": AT_A_TIME}),
        ):
            tenants.append({"name": name, "keys": [hash_key(name)], "limits": limits})
        fresh = self.policy.with_suffix(".new")
        fresh.write_text(json.dumps({"tenants": tenants, "admin_keys": [hash_key("admin")]}))
        fresh.rename(self.policy)

    def start(self) -> None:
        self.process.start()
        self.process.wait_until(lambda: "(2 workers)" in self.log.read_text(), timeout_seconds=90)
        for pid in self.pids():
            with self.at(pid) as connection:
                wait_until(lambda c=connection: get(c, "/ready")[0] == 200, 20)

    @property
    def address(self) -> str:
        found = self.log.read_text().split("http://")[1]
        return found.partition("/v1")[0]

    def pids(self) -> list[int]:
        """Of the workers that run, by their numbers."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            try:
                command = child.cmdline()
            except psutil.NoSuchProcess:  # or it has ended and nobody has asked how
                continue
            if "paceline.middleware.worker_process" in command:
                found[int(command[-3])] = child.pid
        return [pid for _, pid in sorted(found.items())]

    @contextmanager
    def at(self, pid: int) -> Iterator[http.client.HTTPConnection]:
        """A connection to one worker: while it is made the others do not run."""
        others = [other for other in self.pids() if other != pid]
        connection = http.client.HTTPConnection(self.address, timeout=60)
        with closing(connection):
            for other in others:
                os.kill(other, signal.SIGSTOP)
            try:
                assert get(connection, "/health")[0] == 200
            finally:
                for other in others:
                    os.kill(other, signal.SIGCONT)
            yield connection


def get(
    connection: http.client.HTTPConnection, path: str, key: str = "admin", method: str = "GET"
) -> tuple[int, bytes]:
    connection.request(method, path, headers={"x-api-key": key})
    response = connection.getresponse()
    return response.status, response.read()


def chat(
    connection: http.client.HTTPConnection, key: str, **headers: str
) -> tuple[int, http.client.HTTPMessage]:
    """A short answer's status and head."""
    body = {"model": "target", "messages": [{"role": "user", "content": "w1"}], "max_tokens": 2}
    connection.request("POST", CHAT, json.dumps(body), {"x-api-key": key, **headers})
    response = connection.getresponse()
    response.read()
    return response.status, response.headers


def stream(
    connection: http.client.HTTPConnection, key: str, num_tokens: int = LONG
) -> http.client.HTTPResponse:
    """A stream that has begun, or what was answered in its place."""
    body = {"model": "target", "messages": [{"role": "user", "content": "w1"}], "stream": True}
    sent = json.dumps(body | {"max_tokens": num_tokens, "temperature": 0})
    connection.request("POST", CHAT, sent, {"x-api-key": key})
    response = connection.getresponse()
    if response.status == 200:
        assert response.readline()
    return response


def page(connection: http.client.HTTPConnection) -> str:
    return get(connection, "/metrics")[1].decode()


def upstream(connection: http.client.HTTPConnection, action: str = "") -> dict[str, Any]:
    """What an operator is shown of the engine, having asked for something or not."""
    path = "/admin/upstreams" + (f"/e/{action}" if action else "")
    status, shown = get(connection, path, method="POST" if action else "GET")
    assert status == 200, shown
    (found,) = json.loads(shown)["upstreams"]
    return dict(found)


@dataclass
class Stack:
    engine: ServedEngine
    redis: RedisServer
    workers: RunningWorkers


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Everything, started once."""
    folder = tmp_path_factory.mktemp("workers")
    redis = RedisServer(folder)
    with ExitStack() as exits:
        redis.start()
        exits.callback(redis.kill)
        engine = exits.enter_context(served_engine(folder, max_tokens=ENDLESS + 5536))
        workers = RunningWorkers(folder / "proxy", engine, redis)
        exits.callback(workers.process.stop)
        workers.start()
        yield Stack(engine, redis, workers)


@pytest.fixture
def both(stack: Stack) -> Iterator[list[http.client.HTTPConnection]]:
    """A connection to each worker, by its number."""
    wait_until(lambda: len(stack.workers.pids()) == NUM_WORKERS, 60)
    with ExitStack() as exits:
        yield [exits.enter_context(stack.workers.at(pid)) for pid in stack.workers.pids()]


def test_limits_are_exact_over_all_workers(stack: Stack) -> None:
    """Of forty requests, at both workers at once, exactly as many pass as the limit says."""
    with ExitStack() as exits:
        pids = stack.workers.pids()
        connections = [exits.enter_context(stack.workers.at(pid)) for pid in pids for _ in range(4)]

        def ask(connection: http.client.HTTPConnection) -> list[int]:
            return [chat(connection, "counted")[0] for _ in range(5)]

        with ThreadPoolExecutor(len(connections)) as threads:
            found = [each for statuses in threads.map(ask, connections) for each in statuses]
    assert sorted(set(found)) == [200, 429]
    assert found.count(200) == REQUESTS_A_MINUTE


def test_places_are_shared_and_given_back(stack: Stack) -> None:
    """Two streams at each worker: the fourth is one too many, until one of them has gone."""
    with ExitStack() as exits:
        connections = [
            exits.enter_context(stack.workers.at(pid)) for pid in 2 * stack.workers.pids()
        ]
        begun = [stream(connection, "slots", ENDLESS).status for connection in connections]
        assert begun == [200, 200, 200, 429]
        connections[0].close()
        pid = stack.workers.pids()[1]
        with stack.workers.at(pid) as connection:
            wait_until(lambda: chat(connection, "slots")[0] == 200)


def test_one_page_tells_of_all_workers(both: list[http.client.HTTPConnection]) -> None:
    """Each worker's page has both workers' series, whose sum is what was asked; none twice."""
    before = metric_in(page(both[0]), REQUESTS, tenant="free", status="200")
    for number, connection in enumerate(both):
        for _ in range(3 + number):
            assert chat(connection, "free")[0] == 200
    for connection in both:
        text = page(connection)
        assert metric_in(text, REQUESTS, tenant="free", status="200") == before + 7
        assert metric_in(text, "paceline_proxy_workers") == NUM_WORKERS
        for number in range(NUM_WORKERS):
            assert metric_in(text, REQUESTS, tenant="free", worker=str(number)) >= 3 + number
        samples = [
            (sample.name, tuple(sorted(sample.labels.items())))
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]
        assert len(samples) == len(set(samples))


def test_what_one_worker_answered_another_explains(
    both: list[http.client.HTTPConnection],
) -> None:
    """To its tenant alone."""
    status, headers = chat(both[0], "free", **{"x-paceline-explain": "on"})
    assert status == 200
    path = f"/paceline/requests/{headers['x-paceline-request-id']}"
    for connection in both:
        status, told = get(connection, path, key="free")
        assert (status, json.loads(told)["request_id"]) == (200, path.rpartition("/")[2])
        assert get(connection, path, key="other")[0] == 404


def test_an_operator_reaches_all_workers(
    stack: Stack, both: list[http.client.HTTPConnection]
) -> None:
    """What one is told holds for all, what is outstanding is added up; a replaced one knows too."""
    with ExitStack() as exits:
        for pid in stack.workers.pids():
            stream(exits.enter_context(stack.workers.at(pid)), "free")
        shown = upstream(both[0], "drain")
        assert (shown["state"], shown["drained_by"]) == ("draining", "admin")
        assert shown["outstanding"] == 2
        assert [chat(connection, "free")[0] for connection in both] == [503, 503]
    old = stack.workers.pids()
    os.kill(old[1], signal.SIGKILL)
    wait_replaced(stack, old)
    with stack.workers.at(stack.workers.pids()[1]) as connection:
        assert chat(connection, "free")[0] == 503
        assert upstream(connection, "resume")["state"] == "up"
        assert chat(connection, "free")[0] == 200
    with stack.workers.at(old[0]) as connection:
        assert chat(connection, "free")[0] == 200


def wait_replaced(stack: Stack, old: list[int]) -> None:
    """Until as many workers run, and answer each other, as before one of `old` was killed."""

    def is_replaced() -> bool:
        pids = stack.workers.pids()
        if len(pids) < NUM_WORKERS or pids == old:
            return False
        connection = http.client.HTTPConnection(stack.workers.address, timeout=20)
        with closing(connection):
            return metric_in(page(connection), "paceline_proxy_workers") == NUM_WORKERS

    wait_until(is_replaced, 60)


def test_a_policy_holds_in_all_workers(
    stack: Stack, both: list[http.client.HTTPConnection]
) -> None:
    """A tenant that was added is served by each."""
    assert [chat(connection, "new")[0] for connection in both] == [401, 401]
    stack.workers.write_policy("new")
    for connection in both:
        wait_until(lambda c=connection: chat(c, "new")[0] == 200)


def test_a_worker_that_is_killed_is_replaced(
    stack: Stack, both: list[http.client.HTTPConnection]
) -> None:
    """Its streams break off, the other's go on; who connects meanwhile is served."""
    old = stack.workers.pids()
    cut, going_on = (stream(connection, "free") for connection in both)
    assert cut.status == going_on.status == 200
    os.kill(old[0], signal.SIGKILL)
    for _ in range(4):  # while it is away, and after
        connection = http.client.HTTPConnection(stack.workers.address, timeout=60)
        with closing(connection):
            assert chat(connection, "free")[0] == 200
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        cut.read()
    wait_replaced(stack, old)
    assert stack.workers.pids()[1] == old[1]
    assert going_on.read().endswith(b"data: [DONE]\n\n")
    with stack.workers.at(stack.workers.pids()[0]) as connection:
        text = page(connection)
        started = "paceline_proxy_worker_started_timestamp_seconds"
        assert metric_in(text, started, worker="0") > metric_in(text, started, worker="1")
    assert f"worker 0 (process {old[0]}) has ended with code -9" in stack.workers.log.read_text()


def test_a_stop_lets_answers_end_in_all_workers(stack: Stack, tmp_path: Path) -> None:
    """Streams end whole, nobody is taken any more, and no process is left."""
    workers = RunningWorkers(tmp_path, stack.engine, stack.redis)
    with workers.process, ExitStack() as exits:
        workers.process.wait_until(
            lambda: "(2 workers)" in workers.log.read_text(), timeout_seconds=90
        )
        children = psutil.Process(workers.process.pid).children(recursive=True)
        streams = [stream(exits.enter_context(workers.at(pid)), "free") for pid in workers.pids()]
        os.kill(workers.process.pid, signal.SIGTERM)
        wait_until(lambda: not accepts(workers.address))
        assert all(each.read().endswith(b"data: [DONE]\n\n") for each in streams)
        assert workers.process.wait() == 0
        assert not psutil.wait_procs(children, timeout=10)[1]


def test_workers_do_not_outlive_the_process_that_watches_them(stack: Stack, tmp_path: Path) -> None:
    """When that is killed they end what is under way, and then themselves."""
    workers = RunningWorkers(tmp_path, stack.engine, stack.redis)
    with workers.process, ExitStack() as exits:
        workers.process.wait_until(
            lambda: "(2 workers)" in workers.log.read_text(), timeout_seconds=90
        )
        children = psutil.Process(workers.process.pid).children(recursive=True)
        begun = stream(exits.enter_context(workers.at(workers.pids()[0])), "free")
        os.kill(workers.process.pid, signal.SIGKILL)
        assert begun.read().endswith(b"data: [DONE]\n\n")
        assert not psutil.wait_procs(children, timeout=30)[1]


def accepts(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=20)
    with closing(connection):
        try:
            connection.connect()
        except ConnectionRefusedError:
            return False
        return True


@pytest.mark.parametrize(
    ("workers", "why"),
    [("2", "--workers is 2, and without a Redis"), ("0", "give 1 to 64"), ("65", "give 1 to 64")],
)
def test_what_cannot_be_shared_is_refused(tmp_path: Path, workers: str, why: str) -> None:
    """Before anything listens, with what to do about it."""
    config = {"listen": {"port": 0}, "upstreams": [{"name": "e", "url": "http://127.0.0.1:9"}]}
    (tmp_path / "proxy.yaml").write_text(json.dumps(config))
    asked = ["proxy", "--config", str(tmp_path / "proxy.yaml"), "--workers", workers]
    done = CliRunner().invoke(cli, asked)
    assert done.exit_code == 1
    assert why in done.output


def test_a_worker_that_cannot_start_stops_all(stack: Stack, tmp_path: Path) -> None:
    """The reason is the worker's own, and nothing is left listening."""
    workers = RunningWorkers(tmp_path, stack.engine, stack.redis)
    config = json.loads((tmp_path / "proxy.yaml").read_text())
    config["capture"] = {
        "redis_url": stack.redis.url,
        "model": "target",
        "tokenizer": str(tmp_path / "nowhere"),
    }
    (tmp_path / "proxy.yaml").write_text(json.dumps(config))
    with workers.process:
        with pytest.raises(ProcessError):
            workers.process.wait_until(lambda: False, timeout_seconds=90)
        assert workers.process.exit_code == 1
        said = workers.log.read_text()
        assert "nowhere" in said
        assert "worker 0 ended with code 1" in said
