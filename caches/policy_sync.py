"""Keeping a policy's evidence in Redis, and bringing it what other replicas have seen.

See `paceline.caches.policy_state` for what is kept.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

from paceline.caches.journal_client import UNREACHABLE, Backoff, RedisAddress
from paceline.caches.journal_store import JournalStore
from paceline.caches.keys import JournalKeys, namespace_of
from paceline.caches.policy_state import (
    MAX_STATE_BYTES,
    SCHEMA,
    STALE_SECONDS,
    Key,
    PolicyStore,
    StoredPolicy,
    Subjects,
    decode_stored,
    is_covered,
    keys_in,
    scope_subjects,
    state_without,
)
from paceline.caches.records import ModelFingerprint
from paceline.errors import ConfigError, JournalError, RecordError

logger = logging.getLogger("paceline.policy_state")

INTERVAL_SECONDS: Final = 5.0
STALE_CHECK_SECONDS: Final = 3600.0
COUNTERS: Final = (
    *("written", "refused_forgotten", "too_large", "received", "loaded", "forgotten"),
    *("skipped_newer", "skipped_malformed", "skipped_stale", "disconnections", "connected"),
)

StateT = TypeVar("StateT")
StateT_contra = TypeVar("StateT_contra", contravariant=True)


class SharedPolicy(Protocol[StateT_contra]):
    """What is shared of a policy (`paceline.policies.bandits.Policy` is one)."""

    @property
    def kind(self) -> str:
        """Name of the algorithm."""

    def state(self) -> bytes:
        """Its own evidence."""

    def load(self, state: bytes) -> None:
        """Add own evidence from before; raises ConfigError where it cannot be used."""

    def merge(self, others: Mapping[str, StateT_contra], /) -> None:
        """Take others' evidence in place of what they had."""

    def forget(self, key: Key) -> None:
        """Drop a key."""


@dataclass(slots=True)
class _Inbox(Generic[StateT]):
    """What the thread has read, for the policy's owner to take in.

    Attributes:
        own: state from before a restart, empty for none.
        number: of the last act of forgetting in it.
        forgotten: keys to drop.
        others: replica to its state.
    """

    own: bytes = b""
    number: int = 0
    forgotten: list[Key] = field(default_factory=list)
    others: dict[str, StateT] = field(default_factory=dict)


@dataclass(slots=True)
class _Outbox:
    """A state that waits to be written.

    Attributes:
        state: the policy's.
        since: monotonic time of the state before: new keys began after it.
        cleared: key to the monotonic time at which it was last forgotten here.
        number: of the last act of forgetting before it was taken.
    """

    state: bytes
    since: float
    cleared: dict[Key, float]
    number: int


class PolicySync(Generic[StateT]):
    """Keeps one policy's state in Redis and brings it what other replicas have seen.

    The policy stays its owner's: only `exchange` and `close` touch it. A thread of its own waits
    for Redis; while Redis is away the policy goes on with what it has.

    Args:
        url: as for `Journal`.
        fingerprint: model and tokenizer; policies of different ones never meet.
        policy: what is shared; used from the thread that calls `exchange`.
        replica: its id, different from every other's at any time; the same again after a restart
            finds its own state as its own.
        decode: a replica's state from bytes, raising ConfigError where it cannot be used.
        subjects_of: what tombstones a key falls under.
        interval_seconds: time between two writings.
        clock: monotonic seconds.

    Raises:
        JournalError: `url` cannot be understood, or the interval is not above 0.
    """

    def __init__(
        self,
        url: str,
        fingerprint: ModelFingerprint,
        policy: SharedPolicy[StateT],
        *,
        replica: str,
        decode: Callable[[bytes], StateT],
        subjects_of: Subjects = scope_subjects,
        interval_seconds: float = INTERVAL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not interval_seconds > 0:
            raise JournalError(f"interval_seconds is {interval_seconds}; give more than 0")
        self._address = RedisAddress(url)
        self._keys = JournalKeys(namespace_of(fingerprint))
        self._fingerprint = fingerprint
        self._policy = policy
        self._kind = policy.kind
        self._replica = replica
        self._decode = decode
        self._subjects_of = subjects_of
        self._interval = interval_seconds
        self._clock = clock
        self._counts = dict.fromkeys(COUNTERS, 0)
        self._lock = threading.Lock()
        self._inbox: _Inbox[StateT] | None = None
        self._outbox: _Outbox | None = None
        self._began_at = clock()
        self._taken_at = self._began_at
        self._next_taking = self._began_at
        self._cleared: dict[Key, float] = {}
        self._cleared_number = 0
        self._has_loaded = False
        # the thread's own
        self._has_read = False
        self._begun: dict[Key, float] = {}
        self._doomed: dict[Key, int] = {}
        self._num_forgets = 0
        self._last_written = b""
        self._last_read: tuple[dict[str, bytes], dict[str, float], int] | None = None
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(
            target=self._forever, name="paceline-policy-state", daemon=True
        )

    def start(self) -> None:
        """Begin; a Redis that cannot be reached now is waited for.

        Raises:
            JournalError: Redis refuses user, password or permissions.
        """
        self._address.check_access()
        self._thread.start()

    def exchange(self) -> None:
        """Take in what others have seen, and hand over a state, where either is due.

        For the policy's owner, between rounds; never waits for Redis. Mostly O(1), O(tables) when
        due.
        """
        now = self._clock()
        if self._inbox is None and now < self._next_taking:
            return
        self._take_in()
        if self._has_loaded and now >= self._next_taking:
            self._hand_over(now)

    def close(self, timeout: float = 2.0) -> None:
        """Write the last state if `timeout` seconds suffice, then stop."""
        self._take_in()
        if self._has_loaded:
            self._hand_over(self._clock())
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def stats(self) -> dict[str, int]:
        """Counters since the start.

        Written, refused_forgotten, too_large; received states of others; loaded; forgotten keys;
        skipped_*; disconnections; connected 0 or 1.
        """
        with self._lock:
            return dict(self._counts)

    def _take_in(self) -> None:
        with self._lock:
            inbox, self._inbox = self._inbox, None
        if inbox is None:
            return
        if inbox.own:
            self._load(inbox.own)
        for key in inbox.forgotten:
            self._policy.forget(key)
            self._cleared[key] = self._clock()
        self._cleared_number = max(self._cleared_number, inbox.number)
        self._policy.merge(inbox.others)
        self._has_loaded = True

    def _load(self, state: bytes) -> None:
        try:
            self._policy.load(state)
        except ConfigError as error:
            self._count("skipped_malformed")
            logger.warning("the policy starts without what it had seen: %s", error)
        else:
            self._count("loaded")

    def _hand_over(self, now: float) -> None:
        outbox = _Outbox(
            self._policy.state(), self._taken_at, dict(self._cleared), self._cleared_number
        )
        with self._lock:
            if self._outbox is not None:  # not written yet: keys of either began after its start
                outbox.since = self._outbox.since
            self._outbox = outbox
        self._taken_at, self._next_taking = now, now + self._interval
        self._wake.set()

    def _forever(self) -> None:
        backoff = Backoff()
        while not self._stopping.is_set():
            try:
                with closing(self._address.connect()) as client:
                    store = JournalStore(client, self._keys)
                    store.register(self._fingerprint)
                    self._work(store, backoff)
            except UNREACHABLE as error:
                self._count("disconnections")
                with self._lock:
                    self._counts["connected"] = 0
                logger.info("policies are not shared at the moment: %s", error)
                self._stopping.wait(backoff.next_seconds())

    def _work(self, store: JournalStore, backoff: Backoff) -> None:
        policies = PolicyStore(store, self._kind, subjects_of=self._subjects_of)
        while True:
            stopping = self._stopping.is_set()
            offset = store.now() - self._clock()
            self._read(policies, offset)
            self._write(policies, offset)
            with self._lock:
                self._counts["connected"] = 1
            backoff.reset()
            if stopping:
                return
            self._wake.wait(self._interval)
            self._wake.clear()

    def _read(self, policies: PolicyStore, offset: float) -> None:
        tombstones = policies.tombstones()
        fields = policies.read()
        if self._replica not in fields:
            self._last_written = b""  # somebody took it away: write it again
        hour = int((self._clock() + offset) // STALE_CHECK_SECONDS)
        found = {name: data for name, data in fields.items() if name != self._replica}
        forgotten = [
            key
            for key, begun_at in self._begun.items()
            if is_covered(key, begun_at, tombstones, self._subjects_of)
        ]
        if not forgotten and self._last_read == (found, tombstones, hour):
            return
        self._last_read = (found, tombstones, hour)
        others: dict[str, StateT] = {}
        own = b""
        for replica, data in fields.items():
            stored = self._usable(policies, replica, data, offset, tombstones)
            if stored is None:
                continue
            if replica != self._replica:
                self._add(others, replica, stored)
            elif not self._has_read:
                own = stored.state
                self._begun = dict(stored.begun)
        self._has_read = True
        self._num_forgets += bool(forgotten)
        for key in forgotten:
            del self._begun[key]
            self._doomed[key] = self._num_forgets  # until a state comes that is without it
        self._deliver(own, forgotten, others)

    def _usable(
        self,
        policies: PolicyStore,
        replica: str,
        data: bytes,
        offset: float,
        tombstones: Mapping[str, float],
    ) -> StoredPolicy | None:
        """A field's record without what is forgotten; None if nothing can be made of it."""
        try:
            stored = decode_stored(data)
        except RecordError:
            self._count("skipped_malformed")
            return None
        if stored.written_at < self._clock() + offset - STALE_SECONDS:
            self._count("skipped_stale")
            policies.swap(replica, data, None)
            return None
        doomed = stored.forgotten(tombstones, self._subjects_of)
        return stored.without(doomed) if doomed else stored

    def _add(self, others: dict[str, StateT], replica: str, stored: StoredPolicy) -> None:
        try:
            others[replica] = self._decode(stored.state)
        except ConfigError:  # of another version, as while replicas are updated one by one
            self._count("skipped_newer")
        else:
            self._count("received")

    def _deliver(self, own: bytes, forgotten: Iterable[Key], others: dict[str, StateT]) -> None:
        with self._lock:
            if self._inbox is not None:  # not taken in yet: what it has to do stays
                own = own or self._inbox.own
                forgotten = [*self._inbox.forgotten, *forgotten]
            forgotten = list(forgotten)
            self._counts["forgotten"] += len(forgotten)
            self._inbox = _Inbox(own, self._num_forgets, forgotten, others)

    def _write(self, policies: PolicyStore, offset: float) -> None:
        with self._lock:
            outbox, self._outbox = self._outbox, None
        if outbox is None:
            return
        self._doomed = {k: n for k, n in self._doomed.items() if n > outbox.number}
        state = state_without(outbox.state, self._doomed) if self._doomed else outbox.state
        if state == self._last_written:
            return
        if len(state) > MAX_STATE_BYTES:
            self._count("too_large")
            return
        begun: dict[Key, float] = {}
        for key in keys_in(state):
            cleared = outbox.cleared.get(key, outbox.since)
            begun[key] = self._begun.get(key, max(cleared, outbox.since) + offset)
        record = StoredPolicy(SCHEMA, self._clock() + offset, list(begun.items()), state)
        try:
            is_written = policies.write(self._replica, record)
        except UNREACHABLE:
            with self._lock:  # once more when Redis is back, unless there is a newer one by then
                if self._outbox is None:
                    self._outbox = outbox
                self._outbox.since = min(self._outbox.since, outbox.since)
            raise
        self._begun = begun
        self._count("written" if is_written else "refused_forgotten")
        if is_written:
            self._last_written = state

    def _count(self, name: str) -> None:
        with self._lock:
            self._counts[name] += 1
