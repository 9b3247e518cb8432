"""The dashboard's process: ``python -m paceline.middleware.dashboard``."""

from __future__ import annotations

import logging
import os

import msgspec
import waitress

from paceline.middleware.dashboard.page import make_app
from paceline.middleware.dashboard.settings import ENVIRONMENT, DashboardSettings
from paceline.middleware.dashboard.watcher import Watcher

THREADS = 4


def main() -> None:
    """Serve pages on the loopback interface until it is stopped."""
    settings = msgspec.json.decode(os.environ.pop(ENVIRONMENT), type=DashboardSettings)
    logging.basicConfig(level=logging.WARNING)
    watcher = Watcher(settings)
    watcher.start()
    waitress.serve(
        make_app(watcher), host="127.0.0.1", port=settings.port, threads=THREADS, ident=None
    )


if __name__ == "__main__":
    main()
