"""The parts of `paceline bench learn`, running: store, engine, proxy, learner."""

from __future__ import annotations

import json
import os
import re
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import msgspec

from paceline.benchmarks.learn.records import Asked, Work
from paceline.caches.drafter_registry import DrafterRegistry
from paceline.caches.embedded_store import EmbeddedStore
from paceline.caches.journal_client import RedisAddress
from paceline.caches.journal_store import JournalStore
from paceline.caches.keys import MODELS_KEY, JournalKeys
from paceline.caches.records import SHARED_GROUP
from paceline.middleware.config import ListenConfig, ProxyConfig, UpstreamConfig
from paceline.middleware.server import running_proxy
from paceline.online.learner_settings import LearnerSettings
from paceline.processes import ChildProcess, answers, free_port

MODEL: Final = "bench"
START_SECONDS: Final = 300.0
REQUEST_SECONDS: Final = 600.0
WORKER_SECONDS: Final = 7200.0
POLL_SECONDS: Final = 0.5
WAITING: Final = f'paceline_learner_phase{{group="{SHARED_GROUP}",phase="waiting"}}'
SETTLED_POLLS: Final = 8
"""Looks in a row at which the learner has nothing to do."""


def pinned(core: int, module: str, *arguments: str) -> list[str]:
    """A module's process that computes on one core."""
    return ["taskset", "-c", str(core), sys.executable, "-m", module, *arguments]


def run_worker(work: Work, folder: Path, *, timeout_seconds: float = WORKER_SECONDS) -> Any:
    """What a worker's process found.

    Args:
        work: what it does.
        folder: for its log and what it is told.
        timeout_seconds: how long it may take.

    Raises:
        ProcessError: it failed.
    """
    told = folder / "work.json"
    told.write_bytes(msgspec.json.encode(work))
    found = folder / "found.json"
    command = f'exec "{sys.executable}" -m paceline.benchmarks.learn.worker < "{told}" > "{found}"'
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with ChildProcess(
        "a measurement", ["sh", "-c", command], env=environment, log=folder / "worker.log"
    ) as process:
        process.wait_until(lambda: process.exit_code == 0, timeout_seconds=timeout_seconds)
    return msgspec.json.decode(found.read_bytes())


@dataclass(frozen=True, slots=True)
class Stack:
    """What runs.

    Attributes:
        url: of the proxy, with ``/v1``.
        engine_url: of the engine's own endpoints.
        learner_metrics: URL of the learner's.
        learner_pid: of its process, which has a group of its own.
        engine_pid: of the engine's.
        redis_url: of the store.
        key: that requests carry, "" for none.
        registry: of the drafter's versions.
    """

    url: str
    engine_url: str
    learner_metrics: str
    learner_pid: int
    engine_pid: int
    redis_url: str
    key: str
    registry: DrafterRegistry

    def headers(self, session: str, workload: str) -> dict[str, str]:
        """Of a request."""
        told = {
            "content-type": "application/json",
            "x-session-id": session,
            "x-paceline-workload": workload,
        }
        return told | ({"authorization": f"Bearer {self.key}"} if self.key else {})

    def ask(
        self, prompts: Sequence[Asked], *, workload: str, output_tokens: int, in_flight: int
    ) -> int:
        """Tokens that were said to prompts; so many sessions at a time, each in its order."""

        def one(asked: Asked) -> int:
            body = {
                "model": MODEL,
                "prompt": asked.token_ids,
                "max_tokens": output_tokens,
                "temperature": 0,
            }
            request = urllib.request.Request(  # noqa: S310  our own proxy
                f"{self.url}/completions",
                json.dumps(body).encode(),
                self.headers(asked.session, workload),
            )
            with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as answer:  # noqa: S310
                return int(json.load(answer)["usage"]["completion_tokens"])

        sessions = [list(its) for _, its in groupby(prompts, key=lambda it: it.session)]
        with ThreadPoolExecutor(in_flight) as pool:
            return sum(pool.map(lambda session: sum(map(one, session)), sessions))

    def wait_for_learner(self, most_seconds: float, clock: Callable[[], float]) -> None:
        """Leave the machine to the learner until it has nothing to do, or for so long."""
        until, num_waiting = clock() + most_seconds, 0
        while clock() < until and num_waiting < SETTLED_POLLS:
            time.sleep(POLL_SECONDS)
            text = read_text(self.learner_metrics)
            num_waiting = num_waiting + 1 if is_waiting(text) else 0


def read_text(url: str) -> str:
    """What is there."""
    with urllib.request.urlopen(url, timeout=10.0) as answer:  # noqa: S310  our own learner
        data: bytes = answer.read()
    return data.decode()


def value_of(metrics: str, pattern: str) -> float:
    """The first number of a line of metrics that holds a text; 0 without one."""
    found = re.search(rf"^(?!#).*{re.escape(pattern)}.*\s(\S+)$", metrics, flags=re.MULTILINE)
    return float(found.group(1)) if found else 0.0


def is_waiting(metrics: str) -> bool:
    """Whether the learner has nothing to do, of its metrics."""
    return bool(value_of(metrics, WAITING))


@contextmanager
def running_stack(
    target: str,
    drafter: Path,
    folder: Path,
    settings: Mapping[str, Any],
    cores: tuple[int, int],
    *,
    policy_file: Path | None = None,
    key: str = "",
    engine: Sequence[str] = (),
) -> Iterator[Stack]:
    """Everything on one machine: the engine on one core, the learner on another.

    Args:
        target: Hugging Face folder, GGUF file or the packaged model's name.
        drafter: folder of the first version.
        folder: for what the parts write.
        settings: of the learner, beside what is said here.
        cores: the engine's and the learner's.
        policy_file: of the proxy; without one all is learned from.
        key: of a tenant of it.
        engine: further arguments of the engine.
    """
    with ExitStack() as stack:
        store = EmbeddedStore(folder / "store")
        redis_url = store.start()
        stack.callback(store.stop)
        environment = {
            **os.environ,
            "PACELINE_REDIS_URL": redis_url,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        engine_port, metrics_port = free_port(), free_port()
        engine_url = f"http://127.0.0.1:{engine_port}"
        command = pinned(cores[0], *_engine(target, drafter, folder, engine_port), *engine)
        serving = stack.enter_context(
            ChildProcess("the engine", command, env=environment, log=folder / "engine.log")
        )
        serving.wait_until(lambda: answers(f"{engine_url}/health"), timeout_seconds=START_SECONDS)
        told = msgspec.convert(
            {
                "redis_url": redis_url,
                "registry": str(folder / "drafters"),
                "data": str(folder / "learner"),
                "model": MODEL,
                "target": target,
                "drafter": str(drafter),
                "load": {"engines": [engine_url]},
                "metrics": {"port": metrics_port},
                "threads": 1,
                **settings,
            },
            LearnerSettings,
        )
        command = pinned(cores[1], "paceline.online", "learner", msgspec.json.encode(told).decode())
        learner = stack.enter_context(
            ChildProcess("the learner", command, env=environment, log=folder / "learner.log")
        )
        metrics = f"http://127.0.0.1:{metrics_port}/metrics"
        learner.wait_until(lambda: answers(metrics), timeout_seconds=START_SECONDS)
        proxy = stack.enter_context(
            running_proxy(
                ProxyConfig(
                    listen=ListenConfig(host="127.0.0.1", port=0),
                    upstreams=[UpstreamConfig(name="engine", url=engine_url)],
                    local_learning=policy_file is None,
                    policy_file=policy_file,
                )
            )
        )
        client = stack.enter_context(closing(RedisAddress(redis_url).connect()))
        (namespace,) = client.hgetall(MODELS_KEY)
        registry = DrafterRegistry(
            JournalStore(client, JournalKeys(namespace.decode())), folder / "drafters"
        )
        yield Stack(
            url=f"{proxy.url}/v1",
            engine_url=engine_url,
            learner_metrics=metrics,
            learner_pid=learner.pid,
            engine_pid=serving.pid,
            redis_url=redis_url,
            key=key,
            registry=registry,
        )


def _engine(target: str, drafter: Path, folder: Path, port: int) -> list[str]:
    """The engine's module and arguments."""
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--model-name", MODEL]
    arguments += ["--drafter", str(drafter), "--drafter-registry", str(folder / "drafters")]
    if target != "smollm2":
        arguments += ["--model", target]
    return ["paceline.adapters.embedded", *arguments]
