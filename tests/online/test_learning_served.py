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
import pytest

from embedded_server import MODEL, EmbeddedServer
from learning import SETTINGS
from paceline.drafter_folder import Distilled, read_record
from paceline.online.learner_settings import checked
from paceline.processes import ChildProcess, answers, free_port
from redis_server import RedisServer
from ring_language import RingLanguage
from waiting import wait_until

pytestmark = [pytest.mark.redis, pytest.mark.model, pytest.mark.timeout(600)]

LEARN_SECONDS = 300.0
POLL_SECONDS = 0.1
POLLS_BETWEEN_BURSTS = 100
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


@pytest.fixture
def engine(learnable: Path, tmp_path: Path, redis_server: RedisServer) -> Iterator[EmbeddedServer]:
    """An engine that follows the registry; it asks its drafter in every round."""
    made = EmbeddedServer(
        learnable / "target",
        tmp_path,
        "engine",
        *("--redis", redis_server.url, "--drafter", str(learnable / "drafter")),
        *("--drafter-registry", str(tmp_path / "registry"), "--always-draft"),
    )
    made.start()
    try:
        made.wait_ready()
        yield made
    finally:
        made.stop()


def learner_of(models: Path, folder: Path, redis_url: str, engine_url: str, port: int) -> Any:
    """The learner's process, that looks often and waits little; its gate is as anybody's."""
    told: dict[str, Any] = json.loads(json.dumps(SETTINGS))
    told |= {
        "redis_url": redis_url,
        "registry": str(folder / "registry"),
        "data": str(folder / "data"),
        "model": MODEL,
        "target": str(models / "target"),
        "drafter": str(models / "drafter"),
        "load": {"engines": [engine_url]},
        # it has to find its time between requests that are POLL_SECONDS apart
        "idle": {"open_after_seconds": 0.02, "look_seconds": 0.05},
        "metrics": {"port": port},
        "threads": 1,
    }
    told["judging"]["canary"] = True
    told["replay"]["quiet_seconds"] = 0.5
    told["cycle"] |= {"min_new_tokens": 3000, "passages": 80}
    del told["gate"]
    return ChildProcess(
        "the learner",
        [sys.executable, "-m", "paceline.online", "learner", _json(told)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        log=folder / "learner.log",
    )


def _json(told: dict[str, Any]) -> str:
    return msgspec.json.encode(checked(told)).decode()


def test_an_engine_runs_what_was_learned_from_it(
    engine: EmbeddedServer,
    language: RingLanguage,
    learnable: Path,
    redis_server: RedisServer,
    tmp_path: Path,
) -> None:
    """Its canary finds the new version no worse and promotes it; no reply changes by it.

    More is accepted of what it drafts: on held-out sessions, and of what the engine said with it.
    """
    prompts, sessions, port = itertools.cycle(language.prompts()), itertools.count(), free_port()
    asked = [next(prompts) for _ in range(4)]
    before = [ask(engine, prompt, f"first-{i}") for i, prompt in enumerate(asked)]
    learner = learner_of(learnable, tmp_path, redis_server.url, engine.url, port)
    metrics = f"http://127.0.0.1:{port}/metrics"

    def serve(num_sessions: int) -> None:
        """Go on with the prompts, each in a session of its own."""
        for _ in range(num_sessions):
            ask(engine, next(prompts), f"s{next(sessions)}")

    with learner:
        learner.wait_until(lambda: answers(metrics), timeout_seconds=120)

        def follows() -> bool:
            """Engines take a new version with their next request."""
            serve(1)
            return version(engine) >= 1

        wait_until(follows, seconds=60, every_seconds=POLL_SECONDS)
        bursts = itertools.count()

        def serve_on() -> bool:
            """Something to learn from, in bursts with pauses, then something to try it on."""
            if counted(metrics, "published"):
                serve(10)
            elif next(bursts) % POLLS_BETWEEN_BURSTS == 0:
                serve(100)
            return version(engine) >= 2 and counted(metrics, "promoted") >= 1

        wait_until(serve_on, seconds=LEARN_SECONDS, every_seconds=POLL_SECONDS)
        os.kill(learner.pid, signal.SIGTERM)
        assert learner.wait() == 0, (tmp_path / "learner.log").read_text()
    assert [ask(engine, prompt, f"again-{i}") for i, prompt in enumerate(asked)] == before
    log = (tmp_path / "learner.log").read_text()
    assert "is better" in log
    assert "Traceback" not in log
    learned = int(version(engine))
    held_out = distilled(tmp_path / "registry", learned)
    assert held_out.after.accepted_length > held_out.before.accepted_length + 1
    assert right_tokens(engine, learned) > right_tokens(engine, 1) + 0.5


def distilled(registry: Path, number: int) -> Distilled:
    """The training that a version came of."""
    (folder,) = registry.glob(f"*/*/v{number:06d}")
    record = read_record(folder)
    assert record is not None
    assert record.distilled is not None
    return record.distilled


def right_tokens(engine: EmbeddedServer, number: int) -> float:
    """Tokens a round that a version had right in the engine, of those that it drafted itself."""
    right, rounds = (
        engine.metric(f"paceline_drafter_{name}_total", version=str(number))
        for name in ("right_tokens", "rounds")
    )
    assert rounds > 0
    return right / rounds


def version(engine: EmbeddedServer) -> float:
    """Of the drafter that the engine runs."""
    return engine.metric("paceline_drafter_version")


def counted(url: str, event: str) -> float:
    """How often the learner has done something."""
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  our own
        text = answer.read().decode()
    found = re.search(rf'^paceline_learner_events_total.*event="{event}".* (\S+)$', text, re.M)
    return float(found.group(1)) if found else 0.0
