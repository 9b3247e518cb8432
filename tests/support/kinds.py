"""Vectors that are near or far by construction, and two proxies' keepers on one Redis."""

from __future__ import annotations

from typing import Any

import numpy as np

from paceline.caches.journal_client import RedisAddress
from paceline.middleware.workload_keeper import Place, WorkloadKeeper
from paceline.policies.text_features import NUM_BUCKETS, Vectors, normalised
from paceline.policies.workload_clusters import NUM_PARTS, TEXT, ClusterSettings

PLACE = Place("tenant:a", "a")
OTHER = Place("tenant:b", "b")
IDLE_SECONDS = 3600.0


def direction(*shares: float, part: int = TEXT) -> Vectors:
    """A vector with the given sizes in its first buckets."""
    made = np.zeros((NUM_PARTS, NUM_BUCKETS), np.float32)
    made[part, : len(shares)] = shares
    return normalised(made)


def axis(number: int) -> Vectors:
    """Vectors of different numbers have nothing in common."""
    return direction(*[0.0] * number, 1.0)


class Keeper(WorkloadKeeper):
    """A keeper that remembers what it told."""

    def __init__(self, url: str | None, *, max_clusters: int = 64, **options: Any) -> None:
        self.reset: list[str] = []
        self.renamed: dict[str, str] = {}
        super().__init__(
            None if url is None else RedisAddress(url, socket_seconds=0.5),
            ClusterSettings(max_clusters=max_clusters),
            **{
                "ttl_of": lambda _: IDLE_SECONDS,
                "on_reset": self.reset.append,
                "on_alias": lambda _, renamed: self.renamed.update(renamed),
                **options,
            },
        )
