"""Whose each remembered sequence is: what a tombstone must take out of an engine's draft memory."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Set
from dataclasses import dataclass
from math import inf, nextafter
from typing import Final, NamedTuple

from paceline.caches.tiers import TieredMemory
from paceline.caches.tombstones import Tombstone, subjects

KEPT_RINGS: Final = 2
"""A sequence is surely overwritten once so many times the log's capacity came after it."""


class Owner(NamedTuple):
    """Whose a sequence is; interned, so that thousands of sequences share one."""

    tenant: str
    scope: str
    session: str

    def falls_under(self, tombstone: Tombstone) -> bool:
        """Whether forgetting the tombstone's subject forgets what is this owner's."""
        names = subjects(tenant=self.tenant, scope=self.scope, session=self.session)
        return tombstone.subject in names


@dataclass(frozen=True, slots=True)
class _Sequence:
    owner: Owner
    key: int
    begun_at: float
    finished_at: float
    position: int
    is_own: bool


class _Log:
    """The sequences of one shared log, oldest first."""

    def __init__(self) -> None:
        self.sequences: deque[_Sequence] = deque()
        self.num_tokens = 0  # ever appended, borders included


class SequenceOwners:
    """Which sequences of which shared log are whose; safe to use from several threads.

    About 150 bytes a sequence that the log can still hold.

    Args:
        capacity: most tokens that any log keeps; entries of sequences that a log must have
            overwritten are dropped.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._logs: dict[int, _Log] = {}  # by the log's id in the index
        self._owners: dict[Owner, Owner] = {}
        self._lock = threading.Lock()  # held for a few operations on memory

    def __len__(self) -> int:
        """Sequences noted."""
        return sum(len(log.sequences) for log in self._logs.values())

    def note(
        self,
        log_id: int,
        owner: Owner,
        *,
        key: int,
        begun_at: float,
        finished_at: float,
        is_own: bool,
    ) -> None:
        """A sequence is about to be appended to a log. O(1).

        Args:
            log_id: id of the log in the index (`DraftIndex.scope`).
            owner: whose it is.
            key: under which the index can delete it.
            begun_at: Unix time of the earliest of its tokens.
            finished_at: the time it has in the index.
            is_own: whether it was served here, so that a context of it may be kept.
        """
        with self._lock:
            log = self._logs.setdefault(log_id, _Log())
            owner = self._owners.setdefault(owner, owner)
            log.sequences.append(
                _Sequence(owner, key, begun_at, finished_at, log.num_tokens, is_own)
            )

    def grew(self, log_id: int, num_tokens: int) -> None:
        """A log has taken in as many tokens. O(1) amortised."""
        with self._lock:
            log = self._logs.setdefault(log_id, _Log())
            log.num_tokens += num_tokens + 1
            oldest = log.num_tokens - KEPT_RINGS * self._capacity
            while log.sequences and log.sequences[0].position < oldest:
                log.sequences.popleft()

    def keep(self, log_ids: Set[int]) -> None:
        """Let go of what is noted of all other logs: they are gone. O(logs)."""
        with self._lock:
            for log_id in self._logs.keys() - log_ids:
                del self._logs[log_id]

    def erase(self, memory: TieredMemory, tombstone: Tombstone) -> int:
        """Take everything that a tombstone covers out of the memory; returns how many sequences.

        O(sequences noted); for each that goes, O(sequences of its log), but for a log that is all
        the subject's, which goes at once.
        """
        erased = 0
        for log_id, doomed, is_whole in self._take(tombstone):
            if is_whole:
                # in one sweep; then only what has a context here is left to be asked for by key
                memory.evict_in(log_id, nextafter(tombstone.before, inf))
            for sequence in doomed:
                if sequence.is_own or not is_whole or sequence.finished_at > tombstone.before:
                    memory.delete_in(log_id, sequence.key)
            erased += len(doomed)
        return erased

    def _take(self, tombstone: Tombstone) -> Iterator[tuple[int, list[_Sequence], bool]]:
        """Each log's doomed sequences, and whether nothing else in it is as old."""
        with self._lock:
            covered = {owner for owner in self._owners if owner.falls_under(tombstone)}
            found: list[tuple[int, list[_Sequence], bool]] = []
            for log_id, log in self._logs.items():
                doomed = [s for s in log.sequences if _is_doomed(s, covered, tombstone)]
                if not doomed:
                    continue
                kept = [s for s in log.sequences if not _is_doomed(s, covered, tombstone)]
                is_whole = all(s.finished_at > tombstone.before for s in kept)
                log.sequences = deque(kept)
                found.append((log_id, doomed, is_whole))
            self._owners = {s.owner: s.owner for log in self._logs.values() for s in log.sequences}
        yield from found


def _is_doomed(sequence: _Sequence, covered: set[Owner], tombstone: Tombstone) -> bool:
    return sequence.begun_at <= tombstone.before and sequence.owner in covered
