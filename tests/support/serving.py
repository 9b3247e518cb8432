"""A real `paceline serve` in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import sys
import urllib.request
from pathlib import Path
from typing import Self

import psutil

from paceline.processes import ChildProcess

START_SECONDS = 240.0


class Serving:
    """`paceline serve` on a free port, its data and its output in `folder`.

    Without the dashboard's process unless `dashboard` is true: it takes a second to start.
    """

    def __init__(self, folder: Path, *arguments: str, dashboard: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._output = folder / "serve.log"
        self._children: list[psutil.Process] = []
        self._process = ChildProcess(
            "paceline serve",
            [
                *(sys.executable, "-m", "paceline.middleware.cli", "serve", "--port", "0"),
                *("--data", str(folder / "data"), *arguments),
                *(() if dashboard else ("--no-dashboard",)),
            ],
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            log=self._output,
        )

    def __enter__(self) -> Self:
        self._process.start()
        self._process.wait_until(
            lambda: "Ctrl-C stops everything" in self.output, timeout_seconds=START_SECONDS
        )
        self._children = psutil.Process(self._process.pid).children(recursive=True)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._process.stop()

    @property
    def output(self) -> str:
        """All it has printed so far."""
        return self._output.read_text()

    @property
    def base_url(self) -> str:
        """What an SDK is pointed at."""
        found = re.search(r"^Paceline is ready: (\S+)$", self.output, re.MULTILINE)
        assert found, self.output
        return found[1]

    @property
    def num_children(self) -> int:
        """Processes that it started and that still run."""
        return len(psutil.wait_procs(self._children, timeout=0)[1])

    def engine_metric(self, name: str) -> float:
        """A counter of the embedded engine."""
        return self._metric(rf"paceline_engine_{name}_total")

    @property
    def num_running(self) -> int:
        """Requests that the embedded engine answers now."""
        return int(self._metric("paceline_engine_running"))

    def memory_metric(self, name: str) -> float:
        """A counter of the engine's draft memory, over all scopes and tiers."""
        return self._metric(rf"paceline_memory_{name}_total\{{[^\n]*\}}")

    @property
    def engine_url(self) -> str:
        """Base URL of the embedded engine."""
        engine = next(c for c in self._children if "paceline.adapters.embedded" in c.cmdline())
        command = engine.cmdline()
        return f"http://127.0.0.1:{command[command.index('--port') + 1]}"

    def _metric(self, pattern: str) -> float:
        with urllib.request.urlopen(f"{self.engine_url}/metrics", timeout=10) as response:  # noqa: S310  our own
            text = response.read().decode()
        found = re.findall(rf"^{pattern} (\S+)$", text, re.MULTILINE)
        assert found, text
        return sum(map(float, found))

    def interrupt(self) -> int:
        """Ctrl-C; returns its exit code."""
        os.kill(self._process.pid, signal.SIGINT)
        return self._process.wait()
