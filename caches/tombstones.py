"""Tombstones: what has been forgotten, and up to when.

A tombstone names its subject by a digest: that a tenant or a session was forgotten must not keep
its name. Whoever holds a record can tell whether a tombstone is for it, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from paceline.caches.keys import digest
from paceline.caches.records import SequenceRecord


class Tombstone(msgspec.Struct, frozen=True):
    """One act of forgetting.

    Attributes:
        subject: digest of what is forgotten, one of `subjects`.
        before: Unix time in seconds; what had begun by then is forgotten.
    """

    subject: str
    before: float


def subject_of(*, tenant: str = "", scope: str = "", session: str = "") -> str:
    """Subject of forgetting a tenant or, without one, a scope; of one session of it if named."""
    kind, owner = ("tenant", tenant) if tenant else ("scope", scope)
    return digest(kind, owner, session) if session else digest(kind, owner)


def subjects(*, tenant: str, scope: str, session: str) -> tuple[str, ...]:
    """Every subject that a record of these names falls under."""
    found = [subject_of(tenant=tenant), subject_of(scope=scope)]
    if session:
        found.append(subject_of(tenant=tenant, session=session))
        found.append(subject_of(scope=scope, session=session))
    return tuple(found)


class Forgotten:
    """The tombstones one process knows of; used by one thread.

    O(1) a look-up, one entry a subject.
    """

    def __init__(self, tombstones: Iterable[Tombstone] = ()) -> None:
        self._before: dict[str, float] = {}
        for tombstone in tombstones:
            self.add(tombstone)

    def __len__(self) -> int:
        return len(self._before)

    def add(self, tombstone: Tombstone) -> bool:
        """Take one in; False if as much had been forgotten already."""
        if self._before.get(tombstone.subject, float("-inf")) >= tombstone.before:
            return False
        self._before[tombstone.subject] = tombstone.before
        return True

    def covers(self, record: SequenceRecord) -> bool:
        """Whether a record must not be used any more."""
        if not self._before:
            return False
        names = subjects(tenant=record.tenant, scope=record.scope, session=record.session)
        begun_at = record.begun_at
        return any(self._before.get(name, float("-inf")) >= begun_at for name in names)
