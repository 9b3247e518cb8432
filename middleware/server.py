"""Running the proxy: in the foreground, or in a thread of its own beside something else."""

from __future__ import annotations

import asyncio
import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvicorn
from uvicorn.config import LOGGING_CONFIG

from paceline.errors import ConfigError, PacelineError
from paceline.middleware.allocator import collect_seldom, keep_freed_memory
from paceline.middleware.app import Proxy
from paceline.middleware.client_connection import ClientProtocol
from paceline.middleware.config import ProxyConfig
from paceline.middleware.json_log import json_logging
from paceline.middleware.limiter import LimitTiming
from paceline.middleware.open_files import allow_open_files

LAST_EVENT_SECONDS: Final = 2
"""For the error events of streams that are ended, after the grace."""
START_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.01
BACKLOG: Final = 2048
KEEP_ALIVE_SECONDS: Final = 75
"""Longer than an agent's tools take, mostly, and than clients keep an unused connection (httpx and
the SDKs built on it: 5 s, uvicorn's own default, so that both would end it at the same moment)."""


@dataclass(frozen=True, slots=True)
class RunningProxy:
    """A proxy that listens at `url` (no ``/v1``)."""

    url: str
    proxy: Proxy


class _Server(uvicorn.Server):
    """Ends what is still under way when the grace has passed, instead of cutting it off."""

    def __init__(self, proxy: Proxy) -> None:
        super().__init__(_server_config(proxy))
        self._proxy = proxy

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, and wait for those under way."""
        grace = self._proxy.config.shutdown_grace_seconds
        timer = asyncio.get_running_loop().call_later(grace, self._proxy.stop_answers)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


def run_proxy(config: ProxyConfig, config_file: Path | None = None) -> None:
    """Serve until SIGINT or SIGTERM, then finish what is under way and return.

    Args:
        config: its configuration.
        config_file: where that was read; changes of its upstreams are taken over.

    Raises:
        ConfigError: the policy file is wrong, or the address cannot be listened on.
    """
    with ExitStack() as stack:
        if config.log_format == "json":
            stack.enter_context(json_logging())
        proxy = Proxy(config, config.load_policy(), config_file=config_file)
        listener = stack.enter_context(listening(config))
        print(f"paceline proxy: http://{address_of(listener)}/v1", flush=True)
        serve_on(listener, proxy)


def serve_on(listener: socket.socket, proxy: Proxy) -> None:
    """Serve what comes to a socket until SIGINT or SIGTERM, then finish what is under way.

    The process is the proxy's alone: its limit of open files, its allocator and its collector of
    garbage are set for it.
    """
    allow_open_files()
    keep_freed_memory()
    collect_seldom()
    _Server(proxy).run(sockets=[listener])


@contextmanager
def running_proxy(
    config: ProxyConfig,
    *,
    limit_timing: LimitTiming | None = None,
    config_file: Path | None = None,
) -> Iterator[RunningProxy]:
    """A proxy in a thread of its own, listening when the body begins, stopped when it ends.

    Args:
        config: its configuration.
        limit_timing: times of its limiter, if not its own.
        config_file: where its configuration was read, if its upstreams are to be followed.

    Raises:
        ConfigError: the policy file is wrong, or the address cannot be listened on.
    """
    policy = config.load_policy()
    proxy = Proxy(config, policy, limit_timing=limit_timing, config_file=config_file)
    with listening(config) as listener:
        server = _Server(proxy)
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name="paceline-proxy", daemon=True
        )
        thread.start()
        try:
            _wait_started(server, thread)
            yield RunningProxy(f"http://{address_of(listener)}", proxy)
        finally:
            server.should_exit = True
            thread.join(config.shutdown_grace_seconds + LAST_EVENT_SECONDS + 5)


def _server_config(proxy: Proxy) -> uvicorn.Config:
    return uvicorn.Config(
        proxy,
        loop="uvloop",
        http=ClientProtocol,
        lifespan="on",
        access_log=False,
        proxy_headers=False,
        log_level="warning",
        # uvicorn's own handlers write text; without them its records go where ours do
        log_config=None if proxy.config.log_format == "json" else LOGGING_CONFIG,
        server_header=False,
        ws="none",
        # uvicorn takes whole seconds; it cuts off what has not ended by then
        timeout_graceful_shutdown=math.ceil(proxy.config.shutdown_grace_seconds)
        + LAST_EVENT_SECONDS,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )


@contextmanager
def listening(config: ProxyConfig) -> Iterator[socket.socket]:
    """A socket that listens where a configuration says.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    host, port = config.listen.host, config.listen.port
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; stop what uses the port "
            "or choose another"
        ) from error
    with listener:
        yield listener


def address_of(listener: socket.socket) -> str:
    """Host and port of a listening socket, as a URL has them."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _wait_started(server: uvicorn.Server, thread: threading.Thread) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise PacelineError("the proxy did not start; the log above says why")
        time.sleep(POLL_SECONDS)
