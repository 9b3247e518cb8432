"""Several worker processes of one proxy: they share its listening socket, and are replaced.

All of them take connections from one socket, so that none is lost when one of them dies that it had
not taken yet. What must be counted together is counted in Redis, what concerns all of them they ask
each other (`paceline.middleware.siblings`).
"""

from __future__ import annotations

import logging
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self

from paceline.errors import ConfigError
from paceline.middleware.config import ProxyConfig
from paceline.middleware.json_log import json_logging
from paceline.middleware.server import LAST_EVENT_SECONDS, address_of, listening
from paceline.middleware.siblings import socket_path
from paceline.middleware.worker_process import WorkerSettings
from paceline.processes import ChildProcess

logger = logging.getLogger("paceline.workers")

MAX_WORKERS: Final = 64
LOOK_SECONDS: Final = 0.1
STABLE_SECONDS: Final = 10.0
"""A worker that has run for so long is replaced at once when it ends."""
FIRST_WAIT_SECONDS: Final = 0.2
MAX_WAIT_SECONDS: Final = 10.0
CLOSING_SECONDS: Final = 5.0
"""For what a worker has to hand over when its last answer has ended."""
BEGIN_SECONDS: Final = 60.0
"""Longest that a worker may take until it answers."""
HURRY_SECONDS: Final = 1.0
MAX_SOCKET_PATH: Final = 107
"""What a Unix socket's address has room for, on Linux."""


def check_workers(config: ProxyConfig, num_workers: int) -> None:
    """Check that a proxy can have so many worker processes.

    Raises:
        ConfigError: it cannot.
    """
    if not 1 <= num_workers <= MAX_WORKERS:
        raise ConfigError(f"--workers is {num_workers}; give 1 to {MAX_WORKERS}")
    if num_workers > 1 and config.limits_redis_url is None:
        raise ConfigError(
            f"--workers is {num_workers}, and without a Redis at most 1 can keep limits and "
            "know whose responses are; add limits: {redis_url: redis://HOST:6379} to the "
            "configuration, or leave --workers out"
        )


@dataclass(slots=True)
class _Worker:
    """One of the processes: its number, when it is to be started again, and after which wait."""

    index: int
    process: ChildProcess
    began_at: float = 0.0
    wait_seconds: float = 0.0
    start_at: float | None = None
    """None while it runs."""


@dataclass
class _Signals:
    """SIGINT and SIGTERM: the first one interrupts, the second one hurries what it has begun."""

    num_taken: int = 0
    before: dict[int, Any] = field(default_factory=dict)

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _take(self, _number: int, _frame: FrameType | None) -> None:
        self.num_taken += 1
        if self.num_taken == 1:
            raise KeyboardInterrupt


class Workers:
    """The worker processes of a proxy; a context that ends when all of them have.

    Args:
        config: of the proxy.
        num_workers: how many.
        config_file: where its configuration was read, if its upstreams are to be followed.
        is_hurried: whether answers under way are to be cut off while it ends.
        clock: monotonic seconds.

    Raises:
        ConfigError: so many cannot be, or the address cannot be listened on.
        ProcessError: a worker did not start.
    """

    def __init__(
        self,
        config: ProxyConfig,
        num_workers: int,
        *,
        config_file: Path | None = None,
        is_hurried: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_workers(config, num_workers)
        self.url = ""
        self._config = config
        self._num_workers = num_workers
        self._config_file = config_file
        self._is_hurried = is_hurried
        self._clock = clock
        self._workers: list[_Worker] = []
        self._listener: socket.socket | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def pids(self) -> list[int]:
        """Process ids by worker's number."""
        return [worker.process.pid for worker in self._workers]

    def look(self) -> None:
        """Replace workers that have ended; to be called several times a second.

        One that does not last is started again after longer and longer waits.
        """
        now = self._clock()
        for worker in self._workers:
            if worker.start_at is None and worker.process.exit_code is not None:
                if now - worker.began_at > STABLE_SECONDS:
                    worker.wait_seconds = 0.0
                worker.start_at = now + worker.wait_seconds
                logger.warning(
                    "worker %d (process %d) has ended with code %d; another one begins in %.1f s",
                    worker.index,
                    worker.process.pid,
                    worker.process.exit_code,
                    worker.wait_seconds,
                )
            if worker.start_at is not None and worker.start_at <= now:
                try:
                    self._begin(worker)
                except OSError as error:  # no memory, or no more processes: the others go on
                    worker.start_at = now + worker.wait_seconds
                    logger.warning("worker %d cannot be started: %s", worker.index, error)

    def stop(self) -> None:
        """Take no more connections, let answers under way end, and wait for that."""
        if self._listener is not None:
            self._listener.close()  # else connections would wait for nobody
        running = [worker.process for worker in self._workers if worker.start_at is None]
        for process in running:
            process.terminate()
        grace = self._config.shutdown_grace_seconds + LAST_EVENT_SECONDS + CLOSING_SECONDS
        deadline = self._clock() + grace
        while any(process.exit_code is None for process in running):
            if self._is_hurried():
                deadline = min(deadline, self._clock() + HURRY_SECONDS)
            if self._clock() > deadline:
                break
            time.sleep(LOOK_SECONDS)
        for process in running:
            process.stop(grace_seconds=0.0)
        self._workers.clear()
        self._stack.close()

    def _start(self) -> None:
        self._listener = self._stack.enter_context(listening(self._config))
        self.url = f"http://{address_of(self._listener)}"
        folder = Path(tempfile.mkdtemp(prefix="paceline-"))
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        longest = len(str(socket_path(folder, self._num_workers)))
        if longest > MAX_SOCKET_PATH:
            raise ConfigError(
                f"sockets in {folder} have names of {longest} characters, and {MAX_SOCKET_PATH} "
                "are possible; set TMPDIR to a folder with a shorter name"
            )
        settings = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  the stack closes it
        WorkerSettings(
            config=self._config.model_dump_json(),
            config_file="" if self._config_file is None else str(self._config_file),
            num_workers=self._num_workers,
        ).write(settings.fileno())
        given = (self._listener.fileno(), settings.fileno())
        command = [sys.executable, "-m", "paceline.middleware.worker_process", str(folder)]
        for index in range(self._num_workers):
            arguments = [str(index), *map(str, given)]
            process = ChildProcess(f"worker {index}", [*command, *arguments], pass_fds=given)
            worker = _Worker(index, process, start_at=0.0)
            self._workers.append(worker)
            self._begin(worker)
        for worker in self._workers:
            is_there = partial(_listens, socket_path(folder, worker.index))
            worker.process.wait_until(is_there, timeout_seconds=BEGIN_SECONDS)

    def _begin(self, worker: _Worker) -> None:
        worker.wait_seconds = min(
            max(2 * worker.wait_seconds, FIRST_WAIT_SECONDS), MAX_WAIT_SECONDS
        )
        worker.process.start()
        worker.began_at, worker.start_at = self._clock(), None


def run_workers(config: ProxyConfig, num_workers: int, config_file: Path | None = None) -> None:
    """Serve with several processes until SIGINT or SIGTERM, then finish what is under way.

    A second signal cuts that off.

    Args:
        config: of the proxy.
        num_workers: how many.
        config_file: where it was read; changes of its upstreams are taken over.

    Raises:
        ConfigError, ProcessError: see `Workers`.
    """
    signals = _Signals()
    with ExitStack() as stack:
        if config.log_format == "json":
            stack.enter_context(json_logging())
        stack.enter_context(signals)
        try:
            with Workers(
                config,
                num_workers,
                config_file=config_file,
                is_hurried=lambda: signals.num_taken > 1,
            ) as workers:
                print(f"paceline proxy: {workers.url}/v1 ({num_workers} workers)", flush=True)
                while True:
                    workers.look()
                    time.sleep(LOOK_SECONDS)
        except KeyboardInterrupt:
            return


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
