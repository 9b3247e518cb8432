"""A real vLLM with our worker, as `paceline vllm` starts it."""

from __future__ import annotations

import os
import re
import signal
import sys
import urllib.request
from pathlib import Path

import psutil

from paceline.processes import ChildProcess, answers, free_port

START_SECONDS = 600.0


class VllmServer:
    """`paceline vllm MODEL` on a port of its own; it can be stopped, killed and started again."""

    def __init__(self, model: Path, redis_url: str, folder: Path, name: str) -> None:
        self.name = name
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [
            *(sys.executable, "-m", "paceline.middleware.cli", "vllm", str(model)),
            *("--redis", redis_url, "--served-model-name", "target", "--dtype", "float32"),
            *("--host", "127.0.0.1", "--port", str(self.port), "--max-model-len", "1024"),
            "--enforce-eager",
        ]
        self._log = folder / f"{name}.log"
        self._env = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
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
