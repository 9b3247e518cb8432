"""The ways to the engine of `paceline bench proxy`: its servers, started, pinned and stopped."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import yaml

from paceline.caches.embedded_store import EmbeddedStore
from paceline.processes import ChildProcess, answers, free_port

START_SECONDS: Final = 120.0
PEER_START_SECONDS: Final = 300.0
LITELLM_DIVISOR: Final = 20
"""It is asked for so many times less: it takes some ten milliseconds a request."""


@dataclass(frozen=True, slots=True)
class Peers:
    """Which proxies are measured beside ours.

    Attributes:
        litellm: the ``litellm`` command of an environment with ``litellm[proxy]``, None for none.
        vllm_router: the ``vllm-router`` command, None for none.
        capture: whether a proxy of ours that records what it passes on is one.
    """

    litellm: Path | None = None
    vllm_router: Path | None = None
    capture: bool = False


@dataclass(frozen=True, slots=True)
class Way:
    """One way to the engine.

    Attributes:
        name: ``direct``, ``bare``, ``proxied``, ``captured``, ``litellm`` or ``vllm_router``.
        port: where its requests go.
        pid: process in the middle, None on the direct way.
        engine_port: where it ends.
        divisor: how many times less it is asked for.
        headers: that it wants of each request.
    """

    name: str
    port: int
    pid: int | None
    engine_port: int
    divisor: int = field(default=1, kw_only=True)
    headers: Mapping[str, str] = field(default_factory=dict, kw_only=True)

    def share(self, count: int) -> int:
        """How much of `count` it is asked for; at least one."""
        return max(count // self.divisor, 1)


class Servers:
    """Starts servers, those in the middle on a core of their own.

    Args:
        folder: for configurations and logs.
        stack: ends what was started.
        middle: cores of what is in the middle; empty pins nothing.
    """

    def __init__(self, folder: Path, stack: ExitStack, middle: frozenset[int]) -> None:
        self.folder = folder
        self._stack = stack
        self._middle = middle
        self.engine_port = free_port()
        self._python("benchmarks.proxy.engine", self.engine_port, str(self.engine_port))
        self.engine_url = f"http://127.0.0.1:{self.engine_port}"

    def direct(self) -> Way:
        """Nothing in the middle."""
        return Way("direct", self.engine_port, None, self.engine_port)

    def bare(self) -> Way:
        """The least that can be built on uvicorn and aiohttp."""
        port = free_port()
        with on_cores(self._middle):
            pid = self._python("benchmarks.proxy.bare", port, str(port), self.engine_url)
        return Way("bare", port, pid, self.engine_port)

    def proxy(self, name: str, **more: object) -> Way:
        """Paceline, with more in its configuration."""
        port, config = free_port(), self.folder / f"{name}.yaml"
        upstreams = [{"name": "engine", "url": self.engine_url}]
        config.write_text(yaml.safe_dump({"listen": {"port": port}, "upstreams": upstreams} | more))
        with on_cores(self._middle):
            pid = self._python("middleware.cli", port, "proxy", "--config", str(config))
        return Way(name, port, pid, self.engine_port)

    def captured(self) -> Way:
        """Paceline, recording; whose tokens they are matters to nobody here."""
        store = EmbeddedStore(self.folder / "store")
        self._stack.callback(store.stop)
        tokenizer = self.folder / "tokenizer.json"
        model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
        tokenizer.write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
        capture = {"redis_url": store.start(), "model": "m", "tokenizer": str(tokenizer)}
        return self.proxy("captured", capture=capture)

    def litellm(self, program: Path) -> Way:
        """LiteLLM's proxy, one worker; it wants a key."""
        key = f"sk-{secrets.token_hex(32)}"
        port, config = free_port(), self.folder / "litellm.yaml"
        params = {"model": "openai/m", "api_base": f"{self.engine_url}/v1", "api_key": "none"}
        config.write_text(
            yaml.safe_dump({
                "model_list": [{"model_name": "m", "litellm_params": params}],
                "litellm_settings": {"num_retries": 0},
                "general_settings": {"master_key": key},
            })
        )  # fmt: skip
        command = [str(program), "--config", str(config), "--host", "127.0.0.1"]
        command += ["--port", str(port), "--telemetry", "False"]
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            # its price list as it comes with it, not from the network
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
        }
        with on_cores(self._middle):
            pid = self._start("litellm", command, port, health="/health/liveliness", env=env)
        headers = {"authorization": f"Bearer {key}"}
        return Way("litellm", port, pid, self.engine_port, divisor=LITELLM_DIVISOR, headers=headers)

    def vllm_router(self, program: Path) -> Way:
        """The router of vLLM, with one worker to choose from."""
        port, prometheus = free_port(), free_port()
        command = [str(program), "--worker-urls", self.engine_url, "--policy", "round_robin"]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(prometheus)]
        command += ["--log-level", "warning"]
        with on_cores(self._middle):
            pid = self._start("vllm-router", command, port, health="/health")
        return Way("vllm_router", port, pid, self.engine_port)

    def _python(self, module: str, port: int, *arguments: str) -> int:
        command = [sys.executable, "-m", f"paceline.{module}", *arguments]
        return self._start(f"{module}.{port}", command, port, health="/health")

    def _start(
        self,
        name: str,
        command: list[str],
        port: int,
        *,
        health: str,
        env: Mapping[str, str] | None = None,
    ) -> int:
        process = ChildProcess(name, command, env=env, log=self.folder / f"{name}.log")
        self._stack.enter_context(process)
        process.wait_until(
            lambda: answers(f"http://127.0.0.1:{port}{health}"),
            timeout_seconds=START_SECONDS if env is None else PEER_START_SECONDS,
        )
        return process.pid


@contextmanager
def running_ways(folder: Path, peers: Peers) -> Iterator[list[Way]]:
    """All ways to a running engine, ours after the least that can be built.

    What is in the middle runs on one core, and everything else on the others, where there are
    others.

    Raises:
        ProcessError: a server did not start.
    """
    middle, rest = divided_cores()
    with ExitStack() as stack:
        stack.enter_context(on_cores(rest))
        servers = Servers(folder, stack, middle)
        ways = [servers.direct(), servers.bare(), servers.proxy("proxied")]
        if peers.capture:
            ways.append(servers.captured())
        if peers.vllm_router is not None:
            ways.append(servers.vllm_router(peers.vllm_router))
        if peers.litellm is not None:
            ways.append(servers.litellm(peers.litellm))
        yield ways


def divided_cores() -> tuple[frozenset[int], frozenset[int]]:
    """The core of what is in the middle, and those of the rest; both empty where there is one."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        return frozenset(), frozenset()
    return frozenset(cores[-1:]), frozenset(cores[:-1])


@contextmanager
def on_cores(cores: frozenset[int]) -> Iterator[None]:
    """Run this thread, and what it starts, on these cores; empty changes nothing."""
    before = os.sched_getaffinity(0)
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
