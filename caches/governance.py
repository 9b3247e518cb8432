"""What a tenant has in Redis: how much, all of it, or nothing any more."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

from paceline.caches.answer_store import forget_answers
from paceline.caches.journal_client import Client
from paceline.caches.journal_migration import migrate
from paceline.caches.journal_store import BEGINNING, JournalStore, Sizes
from paceline.caches.keys import MODELS_KEY, JournalKeys, LegacyKeys, Shelf
from paceline.caches.phrase_store import drop_phrases
from paceline.caches.policy_state import forget_policies
from paceline.caches.record_block import StoredRecord
from paceline.caches.records import ModelFingerprint, SequenceRecord
from paceline.caches.shelf_editing import add_sizes, remove_from_shelf
from paceline.caches.shelf_reading import RecordDecoder, records_after
from paceline.caches.tombstones import Forgotten, Tombstone, subject_of, subjects
from paceline.caches.workload_store import WorkloadStore
from paceline.errors import JournalError

CLOCK_SLACK_SECONDS: Final = 5.0
UNKNOWN_MODEL: Final = "(a model of an older Paceline)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelMemory:
    """What one tenant has in the memory of one model.

    Attributes:
        model: the target's name.
        tokenizer: digest of its tokenizer.
        scopes: sharing scopes that the tenant has said something into.
        sizes: records, tokens and bytes, as accounted for.
        num_segments: sealed blocks among it.
    """

    model: str
    tokenizer: str
    scopes: tuple[str, ...]
    sizes: Sizes
    num_segments: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetReceipt:
    """What forgetting has removed.

    Attributes:
        before: Unix time that was forgotten up to, by Redis's clock where none was given; 0 if
            Redis knows of no model.
        num_models: models whose memory was looked through.
        removed: records, tokens and bytes removed from Redis; what cannot be read is among them.
        num_kinds: kinds of work dropped.
    """

    before: float
    num_models: int
    removed: Sizes
    num_kinds: int


class MemoryGovernor:
    """Looks through the journals of every model in one Redis.

    Args:
        client: a connected client.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def stats(self, tenant: str) -> list[ModelMemory]:
        """What the tenant has, one entry for each model that holds something of it."""
        found: list[ModelMemory] = []
        for store, fingerprint in self._stores():
            shelves = store.shelves_of(tenant)
            if not shelves:
                continue
            found.append(
                ModelMemory(
                    model=fingerprint.model,
                    tokenizer=fingerprint.tokenizer,
                    scopes=tuple(sorted({shelf.scope for shelf in shelves})),
                    sizes=store.tenant_sizes(tenant),
                    num_segments=sum(len(store.segments(shelf)) for shelf in shelves),
                )
            )
        return found

    def export(
        self, tenant: str, *, session: str = ""
    ) -> Iterator[tuple[ModelFingerprint, SequenceRecord]]:
        """Every readable record of the tenant, or of one session, with whose tokens they are.

        Oldest first within a scope. Records that are forgotten already are left out.
        """
        for store, fingerprint in self._stores():
            forgotten = Forgotten(store.tombstones())
            for shelf in store.shelves_of(tenant):
                for _, record in records_after(store, shelf, BEGINNING, RecordDecoder(Counter())):
                    if session in ("", record.session) and not forgotten.covers(record):
                        yield fingerprint, record

    def forget(
        self,
        *,
        tenant: str = "",
        scope: str = "",
        session: str = "",
        before: float | None = None,
    ) -> ForgetReceipt:
        """Forget a tenant or a sharing scope, or one session of it, in Redis and every engine.

        A tombstone comes first: from then on nothing that had begun before it is taken in, and
        engines drop what they hold. Then what policies have seen and the records are removed. Kinds
        of work cannot be told apart by session and time: all of the scopes concerned go. Whose the
        answers are that engines keep goes too, whatever their time: nobody can read them then. A
        second call does no harm.

        Args:
            tenant: whose records; or
            scope: of which sharing scope, as in `RequestInfo.scope`.
            session: of which session only, "" for all.
            before: Unix time; what had begun by then is forgotten. None for now.

        Raises:
            JournalError: not exactly one of tenant and scope is given, or `before` is yet to come.
        """
        if bool(tenant) == bool(scope):
            raise JournalError(
                f"tenant is {tenant!r} and scope is {scope!r}; name exactly one to forget"
            )
        subject = subject_of(tenant=tenant, scope=scope, session=session)
        time, removed, num_models = before, Sizes(), 0
        for store, _ in self._stores():
            num_models += 1
            now = store.now()
            time = now if time is None else time  # one for all models
            if time > now + CLOCK_SLACK_SECONDS:
                raise JournalError(
                    f"before is {time:.0f}, {time - now:.0f} s after Redis's clock; what is yet to "
                    "be said cannot be forgotten: give a time that has passed"
                )
            # Statistics go before the tombstone too: an engine that starts in between reads none.
            for shelf in _shelves(store, tenant, scope):
                drop_phrases(store, shelf)
            reaches_to = store.entomb(subject, time)
            forget_policies(store, Tombstone(subject, reaches_to))
            doomed = partial(_is_doomed, Tombstone(subject, reaches_to), by_entry=before is None)
            for shelf in _shelves(store, tenant, scope):
                removed = add_sizes(removed, remove_from_shelf(store, shelf, doomed))
        if tenant:
            forget_answers(self._client, tenant, session)
        return ForgetReceipt(
            before=time or 0.0,
            num_models=num_models,
            removed=removed,
            num_kinds=WorkloadStore(self._client).forget(tenant=tenant, scope=scope),
        )

    def _stores(self) -> Iterator[tuple[JournalStore, ModelFingerprint]]:
        """Every model's journal, those included that only an older Paceline has written to.

        Records of layout 1 are moved into today's first, so that nothing is overlooked.
        """
        described = {
            name.decode(): json.loads(text)
            for name, text in self._client.hgetall(MODELS_KEY).items()
        }
        for namespace in sorted({*described, *self._legacy_namespaces()}):
            fields = described.get(namespace, {})
            store = JournalStore(self._client, JournalKeys(namespace))
            migrate(store)
            yield (
                store,
                ModelFingerprint(
                    model=fields.get("model", UNKNOWN_MODEL), tokenizer=fields.get("tokenizer", "")
                ),
            )

    def _legacy_namespaces(self) -> Iterator[str]:
        """Namespaces that have streams of layout 1. O(keys in Redis)."""
        for key in self._client.scan_iter(match=LegacyKeys("*").scopes, count=1000):
            yield key.decode().partition("{")[2].partition("}")[0]


def _is_doomed(tombstone: Tombstone, stored: StoredRecord, *, by_entry: bool) -> bool:
    """Whether a stored record falls under a tombstone.

    by_entry: what is in Redis when the tombstone is set goes, whatever an engine's clock says.
    """
    record = stored.record
    names = subjects(tenant=record.tenant, scope=record.scope, session=record.session)
    if tombstone.subject not in names:
        return False
    was_there = by_entry and stored.entry_id[0] <= tombstone.before * 1000
    return was_there or record.begun_at <= tombstone.before


def _shelves(store: JournalStore, tenant: str, scope: str) -> list[Shelf]:
    if tenant:
        return store.shelves_of(tenant)
    return [shelf for shelf, _ in store.shelves() if shelf.scope == scope]
