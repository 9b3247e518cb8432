"""Child processes that never outlive us: started, watched until ready, stopped politely or not."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from paceline.errors import PacelineError

POLL_SECONDS: Final = 0.1
PROBE_SECONDS: Final = 2.0
TAIL_BYTES: Final = 4000
PR_SET_PDEATHSIG: Final = 1


class ProcessError(PacelineError):
    """A child process ended or stayed silent when it should have become ready."""


class ChildProcess:
    """One child process, with its output in a file or on our own standard error.

    It runs in a process group of its own, so that Ctrl-C reaches only us and we end it in order; on
    Linux the kernel ends it if we die without doing so.

    Args:
        name: what to call it in messages.
        command: program and arguments.
        env: its whole environment; ours if None.
        log: file that takes its output; None passes it on to our standard error.
        pass_fds: file descriptors of ours that it gets too, under the same numbers.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        self._command = list(command)
        self._env = None if env is None else dict(env)
        self._log = log
        self._pass_fds = tuple(pass_fds)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Its process id; only after `start`."""
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Its exit code, None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def start(self) -> None:
        """Start it and return at once."""
        output: IO[bytes] | int
        output = sys.stderr.fileno() if self._log is None else self._log.open("ab")
        try:
            self._process = subprocess.Popen(
                self._command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
                pass_fds=self._pass_fds,
                # runs one system call in the child; safe beside our threads
                preexec_fn=_die_with_parent,  # noqa: PLW1509
            )
        finally:
            if not isinstance(output, int):
                output.close()

    def wait_until(self, ready: Callable[[], bool], *, timeout_seconds: float) -> None:
        """Poll `ready` until it holds.

        Raises:
            ProcessError: the process ended first, or the time ran out; with the tail of its log.
        """
        deadline = time.monotonic() + timeout_seconds
        while not ready():
            if self.exit_code is not None:
                raise ProcessError(f"{self.name} ended with code {self.exit_code}{self._tail()}")
            if time.monotonic() > deadline:
                raise ProcessError(
                    f"{self.name} was not ready after {timeout_seconds:.0f} s{self._tail()}"
                )
            time.sleep(POLL_SECONDS)

    def wait(self) -> int:
        """Wait until it ends by itself; returns its exit code."""
        assert self._process is not None
        return self._process.wait()

    def terminate(self) -> None:
        """Ask it to end, and return at once. Harmless where it has ended."""
        if self._process is not None:
            self._process.terminate()

    def stop(self, *, grace_seconds: float = 15.0) -> None:
        """Ask its whole group to end, and end it by force after `grace_seconds`."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(grace_seconds)
            except subprocess.TimeoutExpired:
                process.kill()
        self._kill_group()
        process.wait()

    def kill(self) -> None:
        """End it and its children at once, as a crash would."""
        self._kill_group()
        assert self._process is not None
        self._process.wait()

    def _kill_group(self) -> None:
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def _tail(self) -> str:
        if self._log is None:
            return ""
        text = self._log.read_bytes()[-TAIL_BYTES:].decode(errors="replace")
        return f"; the end of {self._log}:\n{text}"


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port of `host` that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def answers(url: str) -> bool:
    """Whether a GET of `url` is answered with 200 within two seconds."""
    try:
        with urllib.request.urlopen(url, timeout=PROBE_SECONDS) as response:  # noqa: S310  our own http URL
            return bool(response.status == 200)  # noqa: PLR2004  HTTP OK
    except (urllib.error.URLError, OSError):
        return False


def _die_with_parent() -> None:
    """In the child, before it becomes its program: have the kernel end it when its parent dies.

    Linux only.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
