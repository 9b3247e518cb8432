"""Starting the dashboard's process: by `paceline serve`, or by itself beside `paceline proxy`."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from paceline.errors import ConfigError
from paceline.middleware.config import DashboardConfig, ProxyConfig, is_loopback
from paceline.middleware.dashboard.settings import ENVIRONMENT, DashboardSettings
from paceline.processes import ChildProcess, free_port

NEEDED = ("dash", "dash_mantine_components", "waitress")


def has_dashboard(is_wanted: bool | None) -> bool:
    """Whether there is to be a dashboard; None wants one where it is installed.

    Raises:
        ConfigError: it is wanted and not installed.
    """
    if is_wanted is False:
        return False
    missing = [name for name in NEEDED if find_spec(name) is None]
    if is_wanted and missing:
        raise ConfigError(
            f"the dashboard needs {', '.join(missing)}; install them: pip install "
            "'paceline[dashboard]'"
        )
    return not missing


def dashboard_config() -> DashboardConfig:
    """Where a dashboard on this machine will listen."""
    return DashboardConfig(url=f"http://127.0.0.1:{free_port()}")


def dashboard_settings(
    config: ProxyConfig, *, proxy_url: str, redis_url: str = "", admin_key: str = ""
) -> DashboardSettings:
    """What the process is told.

    Raises:
        ConfigError: the configuration names no dashboard that could run here.
    """
    if config.dashboard is None:
        raise ConfigError(
            "the configuration has no dashboard; add dashboard: {url: http://127.0.0.1:PORT}"
        )
    place = urlsplit(config.dashboard.url)
    if not is_loopback(place.hostname or "") or not place.port:
        raise ConfigError(
            f"dashboard.url is {config.dashboard.url}; the dashboard asks nobody who they are and "
            "listens on this machine only: give http://127.0.0.1:PORT"
        )
    return DashboardSettings.of(
        config, proxy_url=proxy_url, redis_url=redis_url, admin_key=admin_key, port=place.port
    )


def dashboard_process(settings: DashboardSettings, *, log: Path | None = None) -> ChildProcess:
    """The process, to be started. Its settings are in its environment alone: they hold secrets."""
    return ChildProcess(
        "the dashboard",
        [sys.executable, "-m", "paceline.middleware.dashboard"],
        env={**os.environ, ENVIRONMENT: msgspec.json.encode(settings).decode()},
        log=log,
    )


def run_dashboard(config: ProxyConfig, *, redis_url: str = "", admin_key: str = "") -> None:
    """Run it in the foreground, beside the proxy of that configuration.

    Raises:
        ConfigError: it is not installed, or not configured.
    """
    has_dashboard(True)
    host = config.listen.host
    if host in ("0.0.0.0", "::"):  # noqa: S104  asked there, not listened on
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104  as above
    shown = f"[{host}]" if ":" in host else host
    settings = dashboard_settings(
        config,
        proxy_url=f"http://{shown}:{config.listen.port}",
        redis_url=redis_url,
        admin_key=admin_key,
    )
    with dashboard_process(settings) as process:
        process.wait()
