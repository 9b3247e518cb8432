"""An engine that follows its group's drafters through Redis: the one way in which engines do."""

from __future__ import annotations

import logging
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from paceline.adapters.drafter_settings import FollowSettings
from paceline.adapters.drafter_swap import DrafterHost
from paceline.adapters.drafter_watch import DrafterWatch
from paceline.caches import ModelFingerprint
from paceline.caches.drafter_registry import DrafterRegistry
from paceline.caches.journal_client import RedisAddress
from paceline.caches.journal_store import JournalStore
from paceline.caches.keys import JournalKeys, namespace_of

NEWS: Final = "paceline.drafter"
"""Name of the logger of versions that are tried, kept, taken back and drafted with."""


def follow_drafters(
    settings: FollowSettings,
    host: DrafterHost,
    fingerprint: ModelFingerprint,
    *,
    folder: Path | None,
    model: Any = None,
) -> DrafterWatch:
    """Have an engine draft with its group's current version, and from now on follow it.

    Call on the thread that runs the engine, before its first round.

    Args:
        settings: where the versions are.
        host: the engine.
        fingerprint: of the target.
        folder: drafter that the engine was started with; None for none.
        model: what `host.load` would make of it, where that is at hand.

    Raises:
        JournalError: the URL cannot be understood.
    """
    show_news()
    watch = DrafterWatch(
        _opener(settings, fingerprint),
        host,
        group=settings.group,
        replica=f"{socket.gethostname()}-{secrets.token_hex(4)}",
        folder=folder,
        model=model,
    )
    watch.begin()
    watch.start()
    return watch


def _opener(
    settings: FollowSettings, fingerprint: ModelFingerprint
) -> Callable[[], DrafterRegistry]:
    address = RedisAddress(settings.redis_url)
    keys = JournalKeys(namespace_of(fingerprint))
    place = Path(settings.folder)
    return lambda: DrafterRegistry(JournalStore(address.connect(), keys), place)


def show_news() -> None:
    """Have what becomes of versions written to standard error, unless somebody has set up logging.

    Engines set up only their own loggers: of all others what is less than a warning is lost, and
    nobody would see which engine tries a version. These lines are few.
    """
    logger = logging.getLogger(NEWS)
    if logger.hasHandlers():
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(asctime)s %(name)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
