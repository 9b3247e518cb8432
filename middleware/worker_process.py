"""One worker process of a proxy (``python -m paceline.middleware.worker_process``).

Started by `paceline.middleware.workers` alone: its arguments are the folder of the workers'
sockets, its number, the listening socket's descriptor, and that of a file with its settings, which
hold secrets and so are in neither the arguments nor the environment.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import msgspec

from paceline.errors import PacelineError
from paceline.middleware.app import Proxy
from paceline.middleware.config import ProxyConfig
from paceline.middleware.json_log import json_logging
from paceline.middleware.server import serve_on
from paceline.middleware.siblings import Siblings


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker process is told.

    Attributes:
        config: of the proxy, as JSON.
        config_file: where it was read, "" if nowhere.
        num_workers: of the proxy.
    """

    config: str
    config_file: str
    num_workers: int

    def write(self, descriptor: int) -> None:
        """Into an empty file."""
        os.pwrite(descriptor, msgspec.json.encode(self), 0)

    @classmethod
    def read(cls, descriptor: int) -> WorkerSettings:
        """From a file that several processes read at once."""
        return msgspec.json.decode(os.pread(descriptor, os.fstat(descriptor).st_size, 0), type=cls)


def run(folder: Path, index: int, listener: socket.socket, told: WorkerSettings) -> None:
    """Serve until SIGTERM, then finish what is under way and return.

    Raises:
        ConfigError: the policy file is wrong.
    """
    config = ProxyConfig.model_validate_json(told.config)
    with ExitStack() as stack:
        if config.log_format == "json":
            stack.enter_context(json_logging())
        proxy = Proxy(
            config,
            config.load_policy(),
            config_file=Path(told.config_file) if told.config_file else None,
            siblings=Siblings(folder, index, told.num_workers),
        )
        serve_on(listener, proxy)


def main() -> None:
    """Entry point."""
    folder, index, listening, settings = sys.argv[1:]
    try:
        told = WorkerSettings.read(int(settings))
        run(Path(folder), int(index), socket.socket(fileno=int(listening)), told)
    except PacelineError as error:
        print(f"worker {index}: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
