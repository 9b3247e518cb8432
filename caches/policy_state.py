"""What policies have seen, in Redis: shared by the replicas of a model, there after a restart.

Each replica writes its own evidence into its own field, and reads all others'. Nobody adds
another's to its own, so that nothing is counted twice. States are opaque here, but for their keys:
a state is a msgpack map whose ``keys`` are arrays that begin with a key, so that a forgotten tenant
can be taken out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final

import msgspec

from paceline.caches import journal_scripts as scripts
from paceline.caches.journal_store import JournalStore
from paceline.caches.tombstones import Tombstone, subject_of
from paceline.errors import RecordError

SCHEMA: Final = 1
STALE_SECONDS: Final = 7 * 86_400.0
"""What a replica has not written for so long is of other times, and goes."""
MAX_STATE_BYTES: Final = 8_388_608
TENANT_SCOPE: Final = "tenant:"

Key = int | str
Subjects = Callable[[Key], tuple[str, ...]]
"""The subjects of tombstones that a key falls under, at most two."""


def scope_subjects(key: Key) -> tuple[str, ...]:
    """Subjects of a key that is a sharing scope: the scope's, and the tenant's of a private one.

    A tenant in a group has no evidence of its own there: the scope's stays.
    """
    scope = str(key)
    tenant = scope.removeprefix(TENANT_SCOPE).partition("/")[0]
    if not scope.startswith(TENANT_SCOPE):
        return (subject_of(scope=scope),)
    return subject_of(scope=scope), subject_of(tenant=tenant)


class StoredPolicy(msgspec.Struct, frozen=True, array_like=True):
    """One replica's field.

    Attributes:
        schema: of this record.
        written_at: Unix time by Redis's clock.
        begun: key to the time that its evidence began at the earliest: what had begun before its
            tenant was forgotten goes.
        state: the policy's.
    """

    schema: int
    written_at: float
    begun: list[tuple[Key, float]]
    state: bytes

    def forgotten(self, tombstones: Mapping[str, float], subjects_of: Subjects) -> list[Key]:
        """Keys whose evidence began before a tombstone of theirs. O(keys)."""
        return [
            key
            for key, begun_at in self.begun
            if is_covered(key, begun_at, tombstones, subjects_of)
        ]

    def without(self, keys: Collection[Key]) -> StoredPolicy:
        """The same without some keys. O(bytes)."""
        begun = [(key, at) for key, at in self.begun if key not in keys]
        state = state_without(self.state, keys)
        return StoredPolicy(self.schema, self.written_at, begun, state)


def is_covered(
    key: Key, begun_at: float, tombstones: Mapping[str, float], subjects_of: Subjects
) -> bool:
    """Whether a key that began then has been forgotten since."""
    return any(tombstones.get(name, float("-inf")) >= begun_at for name in subjects_of(key))


_decoder = msgspec.msgpack.Decoder(StoredPolicy)
_encoder = msgspec.msgpack.Encoder()
_parts = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_entries = msgspec.msgpack.Decoder(list[msgspec.Raw])
_entry = msgspec.msgpack.Decoder(list[msgspec.Raw])
_key = msgspec.msgpack.Decoder(Key)


def decode_stored(data: bytes) -> StoredPolicy:
    """The record in a field.

    Raises:
        RecordError: it is none, or of a newer Paceline.
    """
    try:
        stored = _decoder.decode(data)
        _keyed(stored.state)
    except msgspec.MsgspecError as error:
        raise RecordError(f"a policy's record of {len(data)} bytes is none: {error}") from error
    if stored.schema > SCHEMA:
        raise RecordError(f"a policy's record is of schema {stored.schema}, known is {SCHEMA}")
    return stored


def keys_in(state: bytes) -> list[Key]:
    """The keys that a state has evidence of. O(bytes).

    Raises:
        msgspec.MsgspecError: it is no state.
    """
    return [key for key, _ in _keyed(state)[1]]


def state_without(state: bytes, keys: Collection[Key]) -> bytes:
    """A state without some keys. O(bytes)."""
    parts, entries = _keyed(state)
    kept = [entry for key, entry in entries if key not in keys]
    return _encoder.encode({**parts, "keys": kept})


def _keyed(
    state: bytes,
) -> tuple[dict[str, msgspec.Raw], list[tuple[Key, msgspec.Raw]]]:
    parts = _parts.decode(state)
    entries = _entries.decode(parts.get("keys", msgspec.Raw(b"\x90")))
    return parts, [(_key.decode(_first(entry)), entry) for entry in entries]


def _first(entry: msgspec.Raw) -> msgspec.Raw:
    found = _entry.decode(entry)
    if not found:
        raise msgspec.ValidationError("an entry of the state's keys is empty")
    return found[0]


class PolicyStore:
    """States of one kind of policy, of one model; use one object a thread.

    Args:
        store: the model's journal.
        kind: of the policy.
        subjects_of: what tombstones a key falls under.
    """

    def __init__(
        self, store: JournalStore, kind: str, *, subjects_of: Subjects = scope_subjects
    ) -> None:
        self._store = store
        self._kind = kind
        self._subjects_of = subjects_of

    def write(self, replica: str, stored: StoredPolicy) -> bool:
        """Put a replica's state in place of what it wrote before; False if part is forgotten."""
        keys = self._store.keys
        arguments: list[object] = [self._kind, replica, _encoder.encode(stored)]
        arguments.append(int(STALE_SECONDS * 1000))
        for key, begun_at in stored.begun:
            subjects = (*self._subjects_of(key), "", "")[:2]
            arguments += [repr(begun_at), *subjects]
        at = [keys.policy(self._kind), keys.policies, keys.forgotten]
        return bool(self._store.run(scripts.KEEP_POLICY, at, arguments))

    def read(self) -> dict[str, bytes]:
        """Every replica's field, as it is."""
        answer = self._store.client.hgetall(self._store.keys.policy(self._kind))
        return {name.decode("utf-8", "replace"): data for name, data in answer.items()}

    def swap(self, replica: str, old: bytes, new: StoredPolicy | None) -> bool:
        """Put another state, or with None nothing, in place of `old`; False if that has changed."""
        arguments = [replica, old, b"" if new is None else _encoder.encode(new)]
        at = [self._store.keys.policy(self._kind)]
        return bool(self._store.run(scripts.SWAP_POLICY, at, arguments))

    def tombstones(self) -> dict[str, float]:
        """Subject to the time that it is forgotten up to."""
        return {each.subject: each.before for each in self._store.tombstones()}

    def forget(self, tombstones: Mapping[str, float]) -> int:
        """Take what is forgotten out of every replica's state; returns how many keys were."""
        num_forgotten = 0
        for replica, data in self.read().items():
            try:
                stored = decode_stored(data)
            except RecordError:  # nobody can read it, nor tell whose it is: it cannot stay
                self.swap(replica, data, None)
                continue
            doomed = stored.forgotten(tombstones, self._subjects_of)
            if doomed and self.swap(replica, data, stored.without(doomed)):
                num_forgotten += len(doomed)
        return num_forgotten


def forget_policies(store: JournalStore, tombstone: Tombstone) -> int:
    """Take a forgotten subject out of all policies' states of a model; returns how many keys."""
    kinds = (kind.decode("utf-8", "replace") for kind in store.client.smembers(store.keys.policies))
    forgotten = {tombstone.subject: tombstone.before}
    return sum(PolicyStore(store, kind).forget(forgotten) for kind in kinds)
