"""A real vLLM: with our worker, as `paceline vllm` starts it, or without."""

from __future__ import annotations

import os
import re
import signal
import sys
import urllib.request
from pathlib import Path

import psutil

from paceline.adapters.vllm.launch import require_vllm, serve_environment
from paceline.processes import ChildProcess, answers, free_port

START_SECONDS = 600.0


class VllmServer:
    """`paceline vllm MODEL` on a port of its own; it can be stopped, killed and started again.

    Without a `redis_url` it is plain vLLM, which knows nothing of us. Further arguments are vLLM's,
    as are the variables of its environment.
    """

    def __init__(
        self,
        model: Path,
        redis_url: str | None,
        folder: Path,
        name: str,
        *arguments: str,
        **environment: str,
    ) -> None:
        self.name = name
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        metrics_port = free_port()
        self.worker_url = f"http://127.0.0.1:{metrics_port}"
        """Where our worker tells Prometheus of its memory, and what it decided for a request."""
        vllm = require_vllm()
        command = vllm.serve_command(str(model))
        if redis_url is not None:
            command = [sys.executable, "-m", "paceline.middleware.cli", "vllm", str(model)]
            command += ["--redis", redis_url]
        self._command = [
            *(*command, "--served-model-name", "target", "--dtype", "float32"),
            *("--host", "127.0.0.1", "--port", str(self.port), "--max-model-len", "1024"),
            *("--enforce-eager", *arguments),
        ]
        self._log = folder / f"{name}.log"
        self._env = {
            **serve_environment(os.environ, None, device=vllm.device),
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "PACELINE_METRICS_PORT": str(metrics_port),
            **environment,
        }
        self._process: ChildProcess | None = None

    def start(self) -> None:
        """Start it and return at once."""
        self._process = ChildProcess(self.name, self._command, env=self._env, log=self._log)
        self._process.start()

    def wait_ready(self) -> None:
        assert self._process is not None
        self._process.wait_until(
            lambda: answers(f"{self.url}/health"), timeout_seconds=START_SECONDS
        )

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop(grace_seconds=30)

    def kill(self) -> None:
        """``kill -9`` to vLLM itself, its API server and its engine, not to our command."""
        assert self._process is not None
        for process in psutil.Process(self._process.pid).children(recursive=True):
            process.send_signal(signal.SIGKILL)

    def metric(self, name: str) -> float:
        """Sum of a metric over its labels; 0 if it is not there."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as response:  # noqa: S310  our own
            text = response.read().decode()
        found = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        return sum(float(value) for value in found)

    @property
    def num_drafted(self) -> int:
        return int(self.metric("vllm:spec_decode_num_draft_tokens_total"))

    @property
    def num_accepted(self) -> int:
        return int(self.metric("vllm:spec_decode_num_accepted_tokens_total"))

    @property
    def num_running(self) -> int:
        return int(self.metric("vllm:num_requests_running"))
