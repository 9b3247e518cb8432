"""The whole of it: an engine serves, the learner learns in the pauses, the engine swaps."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from embedded_server import MODEL, EmbeddedServer
from learning import SETTINGS, write_models
from paceline.online.learner_settings import checked
from paceline.processes import ChildProcess, answers, free_port
from redis_server import RedisServer
from waiting import wait_until

pytestmark = [pytest.mark.redis, pytest.mark.model, pytest.mark.timeout(900)]

LEARN_SECONDS = 450.0
POLLS_BETWEEN_BURSTS = 200
"""Some ten seconds: time for a cycle."""


def ask(engine: EmbeddedServer, prompt: list[int], session: str) -> str:
    """What is said to a prompt, greedily, by a tenant that learns."""
    body = {
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": 24,
        "temperature": 0,
        "vllm_xargs": {
            "paceline_tenant": "shop",
            "paceline_scope": "tenant:shop",
            "paceline_session": session,
            "paceline_workload": "w",
            "paceline_learn": 1,
        },
    }
    request = urllib.request.Request(  # noqa: S310  our own
        f"{engine.url}/v1/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310  our own
        said: str = json.load(answer)["choices"][0]["text"]
    return said


class Prompts:
    """Of six kinds, no two alike, the same each time."""

    def __init__(self) -> None:
        self._generator = np.random.default_rng(0)
        self._kinds = [self._generator.integers(2, 90, 6).tolist() for _ in range(6)]
        self.num = 0

    def __next__(self) -> list[int]:
        self.num += 1
        return [*self._kinds[self.num % 6], int(self._generator.integers(2, 90))]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target and a drafter that has learned nothing."""
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def engine(models: Path, tmp_path: Path, redis_server: RedisServer) -> Iterator[EmbeddedServer]:
    """An engine that follows the registry; it asks its drafter in every round."""
    made = EmbeddedServer(
        models / "target",
        tmp_path,
        "engine",
        *("--redis", redis_server.url, "--drafter", str(models / "drafter")),
        *("--drafter-registry", str(tmp_path / "registry"), "--always-draft"),
    )
    made.start()
    try:
        made.wait_ready()
        yield made
    finally:
        made.stop()


def learner_of(models: Path, folder: Path, redis_url: str, engine_url: str, port: int) -> Any:
    """The learner's process, that looks often and waits little."""
    told: dict[str, Any] = json.loads(json.dumps(SETTINGS))
    told |= {
        "redis_url": redis_url,
        "registry": str(folder / "registry"),
        "data": str(folder / "data"),
        "model": MODEL,
        "target": str(models / "target"),
        "drafter": str(models / "drafter"),
        "load": {"engines": [engine_url]},
        "idle": {"open_after_seconds": 0.1, "look_seconds": 0.05},
        "metrics": {"port": port},
        "threads": 1,
    }
    told["judging"]["canary"] = True
    told["replay"]["quiet_seconds"] = 0.5
    told["cycle"] |= {"min_new_tokens": 3000, "passages": 80}
    told["gate"]["confidence"] = 0.6  # of prompts never seen little can be known of this target
    return ChildProcess(
        "the learner",
        [sys.executable, "-m", "paceline.online", "learner", _json(told)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        log=folder / "learner.log",
    )


def _json(told: dict[str, Any]) -> str:
    return msgspec.json.encode(checked(told)).decode()


def test_an_engine_runs_what_was_learned_from_it(
    engine: EmbeddedServer, models: Path, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Its canary finds the new version no worse and promotes it; no reply changes by it."""
    prompts, port = Prompts(), free_port()
    asked = [next(prompts) for _ in range(4)]
    before = [ask(engine, prompt, f"first-{i}") for i, prompt in enumerate(asked)]
    learner = learner_of(models, tmp_path, redis_server.url, engine.url, port)
    metrics = f"http://127.0.0.1:{port}/metrics"
    with learner:
        learner.wait_until(lambda: answers(metrics), timeout_seconds=120)

        def follows() -> bool:
            """Engines take a new version with their next request."""
            ask(engine, next(prompts), f"s{prompts.num}")
            return version(engine) >= 1

        wait_until(follows, seconds=60)
        bursts = itertools.count()

        def serve_on() -> bool:
            """Something to learn from, in bursts with pauses, then something to try it on.

            A first candidate need not be surely better: then the learner waits for more.
            """
            if counted(metrics, "published"):
                ask(engine, next(prompts), f"s{prompts.num}")
            elif next(bursts) % POLLS_BETWEEN_BURSTS == 0:
                for _ in range(100):
                    ask(engine, next(prompts), f"s{prompts.num}")
            return version(engine) >= 2 and counted(metrics, "promoted") >= 1

        wait_until(serve_on, seconds=LEARN_SECONDS)
        os.kill(learner.pid, signal.SIGTERM)
        assert learner.wait() == 0, (tmp_path / "learner.log").read_text()
    assert [ask(engine, prompt, f"again-{i}") for i, prompt in enumerate(asked)] == before
    log = (tmp_path / "learner.log").read_text()
    assert "is better" in log
    assert "Traceback" not in log


def version(engine: EmbeddedServer) -> float:
    """Of the drafter that the engine runs."""
    return engine.metric("paceline_drafter_version")


def counted(url: str, event: str) -> float:
    """How often the learner has done something."""
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  our own
        text = answer.read().decode()
    found = re.search(rf'^paceline_learner_events_total.*event="{event}".* (\S+)$', text, re.M)
    return float(found.group(1)) if found else 0.0
