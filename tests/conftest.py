"""What several rooms' tests need: a real redis-server, a target that vLLM can serve."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from redis_server import RedisServer


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Start a redis-server with further arguments; it is ended after the test."""
    servers: list[RedisServer] = []

    def start(*arguments: str) -> RedisServer:
        folder = tmp_path / f"redis-{len(servers)}"
        folder.mkdir()
        servers.append(RedisServer(folder, *arguments))
        servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def redis_server(start_redis: Callable[..., RedisServer]) -> RedisServer:
    """A plain redis-server."""
    return start_redis()


@pytest.fixture(scope="session")
def target_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged model as a Hugging Face folder, exported by a process of its own."""
    folder = tmp_path_factory.mktemp("target")
    code = (
        "import sys, pathlib;"
        "from paceline.adapters.embedded.packaged import export_packaged_model;"
        "export_packaged_model(pathlib.Path(sys.argv[1]))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        check=True,
        capture_output=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    return folder
