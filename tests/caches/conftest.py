"""Engines on one Redis, and a look inside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from journals import MODEL, Engine, open_store
from paceline.caches import ModelFingerprint
from paceline.caches.embedded_store import EmbeddedStore
from paceline.caches.journal_store import JournalStore
from redis_server import RedisServer
from registry_machine import RegistryMachine


@pytest.fixture
def engine() -> Iterator[Callable[..., Engine]]:
    """Start engines; they are closed after the test."""
    with ExitStack() as stack:

        def start(url: str, origin: str, model: ModelFingerprint = MODEL, **options: Any) -> Engine:
            made = Engine(url, origin, model, **options)
            made.journal.start()
            stack.callback(made.journal.close, timeout=0.2)
            return made

        yield start


@pytest.fixture
def store(redis_server: RedisServer) -> Iterator[JournalStore]:
    """The journal of the tests' model in a plain redis-server."""
    made = open_store(redis_server.url)
    with closing(made.client):
        yield made


@pytest.fixture(params=["redis", "valkey"])
def machine(
    request: pytest.FixtureRequest, tmp_path: Path, start_redis: Callable[..., RedisServer]
) -> Iterator[RegistryMachine]:
    """On a redis-server and on the embedded Valkey."""
    with ExitStack() as stack:
        if request.param == "redis":
            url = start_redis().url
        else:
            url = stack.enter_context(EmbeddedStore(tmp_path / "store")).url
        yield RegistryMachine(url, tmp_path, stack)
