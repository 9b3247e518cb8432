"""Running the proxy: in the foreground, or in a thread of its own beside something else."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

import uvicorn
from uvicorn.config import LOGGING_CONFIG

from paceline.errors import ConfigError, PacelineError
from paceline.middleware.app import Proxy
from paceline.middleware.config import ProxyConfig
from paceline.middleware.json_log import json_logging
from paceline.middleware.limiter import LimitTiming

GRACE_SECONDS: Final = 10
START_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.01
BACKLOG: Final = 2048


@dataclass(frozen=True, slots=True)
class RunningProxy:
    """A proxy that listens at `url` (no ``/v1``)."""

    url: str
    proxy: Proxy


def run_proxy(config: ProxyConfig) -> None:
    """Serve until SIGINT or SIGTERM, then finish what is under way and return.

    Raises:
        ConfigError: the policy file is wrong, or the address cannot be listened on.
    """
    with ExitStack() as stack:
        if config.log_format == "json":
            stack.enter_context(json_logging())
        proxy = Proxy(config, config.load_policy())
        listener = stack.enter_context(_listening(config))
        print(f"paceline proxy: http://{_address(listener)}/v1", flush=True)
        uvicorn.Server(_server_config(proxy)).run(sockets=[listener])


@contextmanager
def running_proxy(
    config: ProxyConfig, *, limit_timing: LimitTiming | None = None
) -> Iterator[RunningProxy]:
    """A proxy in a thread of its own, listening when the body begins, stopped when it ends.

    Args:
        config: its configuration.
        limit_timing: times of its limiter, if not its own.

    Raises:
        ConfigError: the policy file is wrong, or the address cannot be listened on.
    """
    proxy = Proxy(config, config.load_policy(), limit_timing=limit_timing)
    with _listening(config) as listener:
        server = uvicorn.Server(_server_config(proxy))
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name="paceline-proxy", daemon=True
        )
        thread.start()
        try:
            _wait_started(server, thread)
            yield RunningProxy(f"http://{_address(listener)}", proxy)
        finally:
            server.should_exit = True
            thread.join(GRACE_SECONDS + 5)


def _server_config(proxy: Proxy) -> uvicorn.Config:
    return uvicorn.Config(
        proxy,
        loop="uvloop",
        http="httptools",
        lifespan="on",
        access_log=False,
        proxy_headers=False,
        log_level="warning",
        # uvicorn's own handlers write text; without them its records go where ours do
        log_config=None if proxy.config.log_format == "json" else LOGGING_CONFIG,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=GRACE_SECONDS,
        backlog=BACKLOG,
    )


@contextmanager
def _listening(config: ProxyConfig) -> Iterator[socket.socket]:
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


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _wait_started(server: uvicorn.Server, thread: threading.Thread) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise PacelineError("the proxy did not start; the log above says why")
        time.sleep(POLL_SECONDS)
