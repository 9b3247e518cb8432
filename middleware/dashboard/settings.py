"""What the dashboard's process is told when it is started."""

from __future__ import annotations

from typing import Final, Self

import msgspec

from paceline.middleware.config import ProxyConfig

ENVIRONMENT: Final = "PACELINE_DASHBOARD_SETTINGS"
"""Variable that hands the settings to the process: its arguments could be read by everybody."""
PREFIX: Final = "/dashboard/"
"""Where the proxy shows it."""


class EngineAddress(msgspec.Struct, frozen=True):
    """One engine.

    Attributes:
        name: as the proxy names it.
        urls: base URLs that have a ``/metrics``: vLLM's own, and its worker's.
    """

    name: str
    urls: tuple[str, ...]


class DashboardSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the dashboard looks at, and where it listens.

    Attributes:
        proxy_url: base URL of the proxy.
        engines: behind it.
        redis_url: that holds the memory, "" for none.
        admin_key: for the proxy's metrics, "" where it is on the same machine.
        port: on the loopback interface, 0 for a free one.
        interval_seconds: between two looks at all of them.
    """

    proxy_url: str
    engines: tuple[EngineAddress, ...]
    redis_url: str = ""
    admin_key: str = ""
    port: int = 0
    interval_seconds: float = 5.0

    @classmethod
    def of(
        cls,
        config: ProxyConfig,
        *,
        proxy_url: str,
        redis_url: str = "",
        admin_key: str = "",
        port: int = 0,
    ) -> Self:
        """What a proxy's configuration says of it.

        Args:
            config: the proxy's.
            proxy_url: where it listens.
            redis_url: "" for the one that the configuration names.
            admin_key: see above.
            port: see above.
        """
        engines = tuple(
            EngineAddress(
                each.name, tuple(dict.fromkeys(u for u in (each.url, each.decisions_url) if u))
            )
            for each in config.upstreams
        )
        return cls(
            proxy_url=proxy_url,
            engines=engines,
            redis_url=redis_url or config.workloads.redis_url or config.limits_redis_url or "",
            admin_key=admin_key,
            port=port,
        )
