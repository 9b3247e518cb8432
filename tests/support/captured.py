"""What a proxy has recorded, seen from its metrics and from Redis."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import closing
from typing import Any

from journals import open_store
from paceline.caches import ModelFingerprint, SequenceRecord
from paceline.caches.journal_store import BEGINNING
from paceline.caches.shelf_reading import RecordDecoder, records_after
from waiting import wait_until


def recorded(url: str, model: ModelFingerprint, tenant: str) -> list[SequenceRecord]:
    """All that Redis holds of a tenant, shelf by shelf, oldest first."""
    store = open_store(url, model)
    with closing(store.client):
        return [
            item.record
            for shelf in store.shelves_of(tenant)
            for item in records_after(store, shelf, BEGINNING, RecordDecoder(Counter()))
        ]


def wait_recorded(
    url: str, model: ModelFingerprint, tenant: str, count: int = 1
) -> list[SequenceRecord]:
    """The same, once there are so many."""
    wait_until(lambda: len(recorded(url, model, tenant)) >= count)
    return recorded(url, model, tenant)


def metric(proxy: Any, name: str, **labels: str) -> float:
    """Sum of a proxy's metric over the labels that are not named."""
    return metric_in(proxy.proxy.metrics.render().decode(), name, **labels)


def metric_in(text: str, name: str, **labels: str) -> float:
    """The same, of what a `/metrics` has shown."""
    total = 0.0
    for line in text.splitlines():
        found = re.fullmatch(rf"{name}(?:{{(.*)}})? (\S+)", line)
        given = dict(re.findall(r'(\w+)="([^"]*)"', found[1] or "")) if found else {}
        if found and labels.items() <= given.items():
            total += float(found[2])
    return total
