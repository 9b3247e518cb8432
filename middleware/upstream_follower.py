"""Following the proxy's own configuration: its upstreams, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry

from paceline.middleware.config import ProxyConfig, UpstreamConfig, read_config, resolved
from paceline.middleware.file_follower import FileFollower

logger = logging.getLogger("paceline.follower")


class UpstreamFollower(FileFollower[Sequence[UpstreamConfig]]):
    """Reads the proxy's configuration again when it has changed, for its upstreams.

    The whole file is checked first. Other settings hold as they were at the start; that a change of
    them wants a restart is logged.

    Args:
        path: the file.
        config: what it said when the proxy began: what the file says besides is taken over with
            the first looks.
        registry: of the proxy's metrics.
    """

    def __init__(self, path: Path, config: ProxyConfig, registry: CollectorRegistry) -> None:
        self._first = config
        super().__init__(path, config.upstreams, self._read_upstreams, "upstreams", registry)

    def summary(self, value: Sequence[UpstreamConfig]) -> str:
        """Names, and who drains."""
        return ", ".join(u.name + (" (draining)" if u.draining else "") for u in value)

    def _read_upstreams(self, path: Path) -> Sequence[UpstreamConfig]:
        config = resolved(read_config(path), path.parent)
        changed = [
            name
            for name in ProxyConfig.model_fields
            if name != "upstreams" and getattr(config, name) != getattr(self._first, name)
        ]
        if changed:
            logger.warning(
                "changes of %s in %s hold after a restart; upstreams are taken over now",
                ", ".join(changed),
                path,
            )
        return config.upstreams
