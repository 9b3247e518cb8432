"""The embedded engine as a server in a process of its own."""

from __future__ import annotations

import os
import signal
import sys
import urllib.request
from pathlib import Path

from captured import metric_in
from paceline.processes import ChildProcess, answers, free_port

START_SECONDS = 240.0
MODEL = "target"


class EmbeddedServer:
    """Serves `model` under the name ``target``; further arguments are the command's."""

    def __init__(self, model: Path, folder: Path, name: str, *arguments: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process = ChildProcess(
            name,
            [
                *(sys.executable, "-m", "paceline.adapters.embedded", "--port", str(self.port)),
                *("--model", str(model), "--model-name", MODEL, *arguments),
            ],
            # no Redis and no corpora but those named in the arguments
            env={n: v for n, v in os.environ.items() if not n.startswith("PACELINE_")}
            | {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"},
            log=folder / f"{name}.log",
        )

    def start(self) -> None:
        """Start it and return at once."""
        self._process.start()

    def wait_ready(self) -> None:
        self._process.wait_until(
            lambda: answers(f"{self.url}/health"), timeout_seconds=START_SECONDS
        )

    def stop(self) -> None:
        self._process.stop()

    def pause(self) -> None:
        """Stop it in its tracks: it accepts connections and answers nothing."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it at once, as a crash would; `start` starts another on its port."""
        self._process.kill()

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric over the labels that are not named; 0 if it is not there."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as response:  # noqa: S310  our own
            return metric_in(response.read().decode(), name, **labels)
