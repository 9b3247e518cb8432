"""What Redis tells the dashboard: versions of drafters, what bandits know, what is remembered."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from paceline.caches.drafter_registry import DrafterRegistry
from paceline.caches.journal_client import UNREACHABLE, Client, RedisAddress
from paceline.caches.journal_store import JournalStore, registered_models
from paceline.caches.keys import JournalKeys, namespace_of
from paceline.caches.policy_state import PolicyStore, decode_stored
from paceline.errors import ConfigError, JournalError, RecordError
from paceline.middleware.drafter_report import GroupReport
from paceline.policies.bandits import PolicyState, decode_state
from paceline.policies.bandits.report import ContextReport, context_reports

MOST_SHELVES: Final = 1000
"""Shelves whose sizes are read at a look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMemory:
    """What Redis holds of one tenant for one model.

    Attributes:
        tenant: whose.
        num_tokens: remembered.
        num_bytes: that they take.
    """

    tenant: str
    num_tokens: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStored:
    """What Redis holds for one model.

    Attributes:
        model: its name.
        drafters: versions, by group.
        contexts: what bandits have learned.
        memory: by tenant, the largest first.
    """

    model: str
    drafters: tuple[GroupReport, ...]
    contexts: tuple[ContextReport, ...]
    memory: tuple[StoredMemory, ...]


def read_stored(redis_url: str) -> list[ModelStored]:
    """Everything, model by model.

    Raises:
        JournalError: Redis cannot be used.
    """
    address = RedisAddress(redis_url)
    try:
        with closing(address.connect()) as client:
            return [
                ModelStored(
                    model=fingerprint.model,
                    drafters=_drafters(store),
                    contexts=_contexts(client, store),
                    memory=_memory(store),
                )
                for fingerprint in registered_models(client)
                for store in [JournalStore(client, JournalKeys(namespace_of(fingerprint)))]
            ]
    except UNREACHABLE as error:
        raise JournalError(f"{address.shown} cannot be used ({error})") from error


def _drafters(store: JournalStore) -> tuple[GroupReport, ...]:
    registry = DrafterRegistry(store, Path())
    return tuple(GroupReport.read(registry, group) for group in registry.groups())


def _contexts(client: Client, store: JournalStore) -> tuple[ContextReport, ...]:
    states: list[PolicyState] = []
    for kind in client.smembers(store.keys.policies):
        for data in PolicyStore(store, kind.decode("utf-8", "replace")).read().values():
            try:
                states.append(decode_state(decode_stored(data).state))
            except (RecordError, ConfigError):
                continue  # of a newer Paceline, or broken: engines count those
    return tuple(context_reports(states))


def _memory(store: JournalStore) -> tuple[StoredMemory, ...]:
    shelves = store.shelves()[:MOST_SHELVES]
    found = []
    for tenant in dict.fromkeys(shelf.tenant for shelf, _ in shelves):
        held = store.tenant_sizes(tenant)
        found.append(
            StoredMemory(tenant=tenant, num_tokens=held.num_tokens, num_bytes=held.num_bytes)
        )
    return tuple(sorted(found, key=lambda each: -each.num_tokens))
