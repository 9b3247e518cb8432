"""Drafters' versions on a server, the folder beside it, and registries on both."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from drafter_files import drafter_folder
from journals import MODEL, open_store
from paceline.caches import ModelFingerprint
from paceline.caches.drafter_registry import (
    DrafterRegistry,
    LiveFigures,
)
from paceline.caches.records import SHARED_GROUP

GROUP = SHARED_GROUP


class RegistryMachine:
    """A server, a folder beside it, and registries on both."""

    def __init__(self, url: str, folder: Path, stack: ExitStack) -> None:
        self.url = url
        self.folder = folder
        self.now = 1000.0
        self.source = drafter_folder(folder / "source")
        self._stack = stack
        self.registry = self.another()

    def another(self, model: ModelFingerprint = MODEL) -> DrafterRegistry:
        """A registry on a connection of its own, as another thread or process has it."""
        store = open_store(self.url, model)
        self._stack.enter_context(closing(store.client))
        return DrafterRegistry(store, self.folder / "drafters", clock=lambda: self.now)

    def publish(self, weights: bytes = b"weights", group: str = GROUP, **more: Any) -> int:
        drafter_folder(self.source, weights)
        told = {"parent": 0, "num_tokens": 7, "gate": None, **more}
        return self.registry.publish(group, self.source, **told).version

    def states(self, group: str = GROUP) -> dict[int, str]:
        return {each.version: each.state for each in self.registry.versions(group)}

    def files(self) -> list[str]:
        """Folders of versions, whole or not."""
        return sorted(each.name for each in (self.folder / "drafters").glob("*/*/*"))

    def age(self, kind: str, field: str, seconds: float) -> None:
        """Have something begun so long ago by the server's clock."""
        store = self.registry._store
        key = getattr(store.keys.drafter(GROUP), kind)
        store.client.hset(key, field, int(store.now() - seconds))


def figures(replica: str, version: int, at: float) -> LiveFigures:
    return LiveFigures(
        replica=replica,
        version=version,
        num_rounds=10,
        num_agreed=5,
        accepted_length=1.25,
        updated_at=at,
    )
