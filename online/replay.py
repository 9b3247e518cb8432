"""Replay: what one group's drafter learns from, as the journal tells it. Needs no torch.

Records go in, passages come out. Sessions chosen by a hash of their first prompt are held out: they
are measured by and never learned from.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Final, Self

import msgspec
import numpy as np

from paceline.caches.journal_store import EntryId
from paceline.caches.keys import Shelf
from paceline.caches.records import SHARED_GROUP, SequenceRecord
from paceline.caches.tombstones import Forgotten, Tombstone, subjects
from paceline.errors import ConfigError, RecordError
from paceline.online import replay_file
from paceline.online.looks import never
from paceline.online.passages import Cutting, Passage, SessionText
from paceline.online.prompts import is_held_out
from paceline.online.repeats import origin_of, without_learned
from paceline.online.replay_pool import Pool

logger = logging.getLogger("paceline.replay")

STATE: Final = "replay.bin"
ADAPTER_MARK: Final = "/adapter:"
"""In the name of a scope under a LoRA adapter; its parts are quoted."""
COUNTERS: Final = (
    *("taken", "taken_tokens", "passages", "held_out_passages"),
    *("skipped_not_learned", "skipped_other_group", "skipped_adapter", "skipped_forgotten"),
    *("forgotten", "expired", "evicted", "damaged", "discarded", "saved"),
)


class ReplaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a replay keeps and gives.

    Attributes:
        passage_tokens: most tokens of a passage.
        context_tokens: least tokens before its first said one, where the session has as many.
        session_tokens: most tokens held of a session that goes on.
        max_bytes: most memory for passages to learn from (5 bytes a token and 512 a passage).
        held_out_bytes: likewise for held-out ones.
        session_bytes: likewise for sessions that go on.
        held_out_share: share of conversations that are held out; sessions that begin with the same
            prompt are one.
        recent_passages: how many of a workload's newest passages count as recent.
        recent_share: share of a workload's bytes that recent ones take where room is short.
        recent_mix: chance that a sampled passage is a recent one.
        temper: workloads are sampled by their tokens to this power; 1 as they are, 0 all alike.
        quiet_seconds: a session that is quiet for as long is cut off where it is.
        max_age_seconds: what finished longer ago is let go, whatever Redis keeps.

    Raises:
        ConfigError: a value is out of range.
    """

    passage_tokens: int = 1024
    context_tokens: int = 256
    session_tokens: int = 16_384
    max_bytes: int = 134_217_728
    held_out_bytes: int = 16_777_216
    session_bytes: int = 67_108_864
    held_out_share: float = 0.1
    recent_passages: int = 256
    recent_share: float = 0.5
    recent_mix: float = 0.5
    temper: float = 0.5
    quiet_seconds: float = 60.0
    max_age_seconds: float = 30 * 86_400.0

    def __post_init__(self) -> None:
        for name in ("passage_tokens", "max_bytes", "held_out_bytes", "session_bytes"):
            if getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give 2 or more")
        if not 1 <= self.context_tokens < self.passage_tokens:
            raise ConfigError(
                f"context_tokens is {self.context_tokens}; give 1 to {self.passage_tokens - 1}, "
                "less than passage_tokens"
            )
        if self.session_tokens < self.passage_tokens:
            raise ConfigError(
                f"session_tokens is {self.session_tokens}; give {self.passage_tokens} or more, "
                "passage_tokens"
            )
        if self.recent_passages < 1:
            raise ConfigError(f"recent_passages is {self.recent_passages}; give 1 or more")
        for name in ("held_out_share", "recent_share", "recent_mix", "temper"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give 0 to 1")
        for name in ("quiet_seconds", "max_age_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; give a number above 0")

    @property
    def cutting(self) -> Cutting:
        """How passages are cut."""
        return Cutting(self.passage_tokens, self.context_tokens, self.session_tokens)


SessionKey = tuple[str, str, str]
"""Scope, tenant, session."""


class Replay:
    """What one group's drafter learns from; safe to use from several threads.

    Args:
        folder: where it is saved; made if missing. Nothing is read: see `open`.
        namespace: of the model's journal (`keys.namespace_of`).
        group: whose records are taken.
        settings: what is kept.
        on_gone: told of each passage that is held no more, with the lock held; must not block.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        folder: Path,
        *,
        namespace: str,
        group: str = SHARED_GROUP,
        settings: ReplaySettings | None = None,
        on_gone: Callable[[Passage], object] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.settings = ReplaySettings() if settings is None else settings
        self.namespace = namespace
        self.group = group
        self._file = folder / STATE
        self._on_gone = on_gone
        self._clock = clock
        self._lock = threading.RLock()
        self._saving = threading.Lock()
        self._forgotten = Forgotten()
        self._counts: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self._is_changed = False
        self._clear()

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        namespace: str,
        group: str = SHARED_GROUP,
        settings: ReplaySettings | None = None,
        on_gone: Callable[[Passage], object] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """The replay that was saved in the folder, or a new one.

        A damaged file is started anew from (`damaged`), and so is one of another target, tokenizer
        or group (`discarded`): both are logged, and the journal is read from its beginning.
        """
        replay = cls(
            folder,
            namespace=namespace,
            group=group,
            settings=settings,
            on_gone=on_gone,
            clock=clock,
        )
        replay._load()
        return replay

    @property
    def positions(self) -> dict[Shelf, EntryId]:
        """The entry of each shelf that was taken in last; a copy."""
        with self._lock:
            return dict(self._positions)

    def note(self, positions: Mapping[Shelf, EntryId]) -> None:
        """Say how far the journal has been read, all that came before having been added."""
        with self._lock:
            if positions != self._positions:
                self._positions.update(positions)
                self._is_changed = True

    def add(self, record: SequenceRecord, at: EntryId | None = None) -> None:
        """Take in one record, in the order of its shelf. O(tokens of its session).

        Args:
            record: anybody's; what is not to be learned from, or of another group, is passed over.
            at: its entry in the journal, so that it is not taken in again after a restart.
        """
        with self._lock:
            if at is not None:
                self._positions[Shelf(record.scope, record.tenant)] = at
                self._is_changed = True
            reason = self._reason_against(record)
            if reason:
                self._counts[f"skipped_{reason}"] += 1
                return
            self._counts["taken"] += 1
            self._counts["taken_tokens"] += len(record.token_ids)
            self._is_changed = True
            self._add_to_session(record)
            self._settle()

    def sample(self, num: int, rng: np.random.Generator) -> list[Passage]:
        """Passages to learn from, none twice; all there are if they are no more than `num`.

        Depends on what is held and on `rng` alone. Workloads come by a tempered share of what each
        has, recent passages and older ones by `recent_mix`. Held-out sessions never come.
        """
        with self._lock:
            self._settle()
            return self._learned.sample(
                num, rng, temper=self.settings.temper, recent_mix=self.settings.recent_mix
            )

    def newest(self, num: int, num_tokens: int, rng: np.random.Generator) -> list[Passage]:
        """As `sample`, of what finished last: passages of about so many tokens. O(n log n)."""
        with self._lock:
            self._settle()
            held = [it for bucket in self._learned.buckets.values() for it in bucket]
        held.sort(key=lambda it: (-it.finished_at, it.session, it.begun_at))
        ends = np.cumsum([len(it.token_ids) for it in held])
        recent = held[: int(np.searchsorted(ends, num_tokens)) + 1]
        if len(recent) <= num:
            return recent
        return [recent[i] for i in rng.choice(len(recent), num, replace=False)]

    def held_out(
        self, num: int | None = None, *, pause: Callable[[], None] = never
    ) -> list[Passage]:
        """Passages of held-out sessions; those of one session stand together, the oldest first.

        Left out are those of which most is learned from too (`repeats.without_learned`). O(tokens).

        Args:
            num: most of them, None for all. Half of these are the newest, the others the newest of
                each workload by turns: traffic as it is now counts most, and no kind of work that
                is held is forgotten over it. O(n log n).
            pause: called between parts, without the lock.
        """
        with self._lock:
            self._settle()
            held, learned = sorted(self._held_out, key=_in_session), list(self._learned)
        held = without_learned(held, learned, pause=pause)
        if num is None or len(held) <= num:
            return held
        held.sort(key=lambda it: it.finished_at, reverse=True)
        chosen, rest = held[: num // 2], held[num // 2 :]
        of_workload: dict[tuple[str, str], list[Passage]] = {}
        for passage in rest:
            of_workload.setdefault((passage.tenant, passage.workload), []).append(passage)
        turns = chain.from_iterable(zip_longest(*of_workload.values()))
        chosen += islice((it for it in turns if it is not None), num - len(chosen))
        return sorted(chosen, key=_in_session)

    def passages(self) -> list[Passage]:
        """All that is held, to learn from and held out."""
        with self._lock:
            return [*self._learned, *self._held_out]

    def tenants(self) -> set[str]:
        """Whose words are held."""
        with self._lock:
            found = {key.tenant for pool in self._pools for key in pool.buckets}
            return found | {tenant for _, tenant, _ in self._sessions}

    def forget(self, tombstone: Tombstone) -> int:
        """Let go at once of all that a tombstone covers, and take in nothing of it later.

        Returns how many passages went. O(passages + sessions).
        """
        with self._lock:
            if not self._forgotten.add(tombstone):
                return 0
            gone = self._remove(
                lambda it: it.begun_at <= tombstone.before and _falls_under(it, tombstone)
            )
            self._counts["forgotten"] += gone
            return gone

    def expire(self, retention_seconds: Mapping[str, float]) -> int:
        """Let go of what is too old; returns how many passages went. O(passages + sessions).

        Args:
            retention_seconds: of tenants that say how long their words are kept; 0 for ever.
        """
        now, most = self._clock(), self.settings.max_age_seconds

        def is_old(held: Passage | SessionText) -> bool:
            own = retention_seconds.get(held.tenant, 0.0)
            # of a passage of several turns the first counts: its tokens are in there
            return held.begun_at < now - (min(own, most) if own > 0 else most)

        with self._lock:
            gone = self._remove(is_old)
            self._counts["expired"] += gone
            return gone

    def save(self) -> bool:
        """Write what is held, whole or not at all; False if nothing has changed since. O(tokens).

        Others may add and sample meanwhile: what comes then is written the next time.

        Raises:
            OSError: it cannot be written.
        """
        with self._saving:
            with self._lock:
                if not self._is_changed:
                    return False
                sessions = self._sessions.items()
                saved = replay_file.Saved(
                    self.namespace,
                    self.group,
                    dict(self._positions),
                    [(session, self._touched_at[key]) for key, session in sessions],
                )
                taken = replay_file.snapshot(saved, self._pools)
                self._is_changed = False
            try:
                replay_file.write(self._file, taken)
            except BaseException:
                self._is_changed = True
                raise
            with self._lock:
                self._counts["saved"] += 1
            return True

    def stats(self) -> dict[str, int]:
        """Counters since the start, and sizes.

        Of the counters taken* are records and their tokens, passages and held_out_passages what was
        cut, evicted, expired and forgotten what went. Sizes: held_passages, held_said_tokens,
        held_bytes, held_out_sessions (those that begin alike count once), sessions, session_bytes,
        workloads.
        """
        with self._lock:
            return {
                **self._counts,
                "held_passages": len(self._learned),
                "held_said_tokens": self._learned.num_said,
                "held_bytes": self._learned.num_bytes,
                "held_out_bytes": self._held_out.num_bytes,
                "held_out_sessions": len({it.conversation for it in self._held_out}),
                "sessions": len(self._sessions),
                "session_bytes": self._session_bytes,
                "workloads": len(self._learned.buckets),
            }

    def _clear(self) -> None:
        settings = self.settings
        self._learned, self._held_out = (
            Pool(
                most,
                max_recent=settings.recent_passages,
                recent_share=settings.recent_share,
            )
            for most in (settings.max_bytes, settings.held_out_bytes)
        )
        self._pools = (self._learned, self._held_out)
        self._positions: dict[Shelf, EntryId] = {}
        self._sessions: OrderedDict[SessionKey, SessionText] = OrderedDict()
        self._touched_at: dict[SessionKey, float] = {}
        self._pending: OrderedDict[SessionKey, None] = OrderedDict()
        self._session_bytes = 0

    def _reason_against(self, record: SequenceRecord) -> str:
        """Why a record is passed over, "" if it is not."""
        if not record.learn:
            return "not_learned"
        if (record.drafter_group or SHARED_GROUP) != self.group:
            return "other_group"
        if ADAPTER_MARK in record.scope:
            return "adapter"  # another model's words
        return "forgotten" if self._forgotten.covers(record) else ""

    def _add_to_session(self, record: SequenceRecord) -> None:
        name = record.session or record.request_id
        key = record.scope, record.tenant, name
        session = self._sessions.get(key)
        if session is None:
            session = SessionText(
                self.settings.cutting,
                tenant=record.tenant,
                scope=record.scope,
                session=name,
                origin=self._origin(record, key),
            )
            self._session_bytes += session.num_bytes
            self._sessions[key] = session
        before = session.num_bytes
        done = session.take(record)
        self._session_bytes += session.num_bytes - before
        self._touched_at[key] = self._clock()
        self._sessions.move_to_end(key)
        self._pending.pop(key, None)
        if session.is_pending:
            self._pending[key] = None
        self._keep(done)
        if not record.session:
            self._end(key)

    def _origin(self, record: SequenceRecord, key: SessionKey) -> str:
        """Of a session that begins, or of which nothing is held that goes on. O(passages)."""
        if record.num_before <= 0 < record.num_prompt:
            return origin_of(np.asarray(record.token_ids[: record.num_prompt], np.int32))
        earlier = (it for pool in self._pools for it in pool)
        return next((it.origin for it in earlier if (it.scope, it.tenant, it.session) == key), "")

    def _settle(self) -> None:
        """Cut off sessions that are quiet, and let go of those that there is no room for."""
        since = self._clock() - self.settings.quiet_seconds
        while self._pending:
            key = next(iter(self._pending))
            if self._touched_at[key] > since:
                break
            del self._pending[key]
            self._keep(self._sessions[key].passages(ends=True))
        while self._session_bytes > self.settings.session_bytes and self._sessions:
            self._end(next(iter(self._sessions)))

    def _end(self, key: SessionKey) -> None:
        self._keep(self._sessions[key].passages(ends=True))
        self._drop_session(key)

    def _drop_session(self, key: SessionKey) -> None:
        self._session_bytes -= self._sessions.pop(key).num_bytes
        del self._touched_at[key]
        self._pending.pop(key, None)

    def _keep(self, passages: Iterable[Passage]) -> None:
        for passage in passages:
            is_measured = is_held_out(passage.conversation, self.settings.held_out_share)
            self._counts["held_out_passages" if is_measured else "passages"] += 1
            gone = (self._held_out if is_measured else self._learned).add(passage)
            self._counts["evicted"] += len(gone)
            self._tell(gone)
            self._is_changed = True

    def _remove(self, is_gone: Callable[[Passage | SessionText], bool]) -> int:
        for key in [key for key, session in self._sessions.items() if is_gone(session)]:
            self._drop_session(key)
            self._is_changed = True
        gone = [passage for pool in self._pools for passage in pool.remove(is_gone)]
        self._is_changed |= bool(gone)
        self._tell(gone)
        return len(gone)

    def _tell(self, gone: Iterable[Passage]) -> None:
        if self._on_gone is not None:
            for passage in gone:
                self._on_gone(passage)

    def _load(self) -> None:
        if not self._file.exists():
            return
        try:
            saved = replay_file.read(self._file, self._pools, self.settings.cutting)
        except (OSError, RecordError) as error:
            self._start_anew("damaged", str(error))
            return
        if (saved.namespace, saved.group) != (self.namespace, self.group):
            self._start_anew(
                "discarded",
                f"{self._file} is of group {saved.group} in {saved.namespace}, this is "
                f"{self.group} in {self.namespace}: another target or tokenizer's words",
            )
            return
        self._positions = dict(saved.positions)
        for session, touched_at in saved.sessions:
            key = session.scope, session.tenant, session.session
            self._sessions[key] = session
            self._touched_at[key] = touched_at
            self._session_bytes += session.num_bytes
            if session.is_pending:
                self._pending[key] = None
        for pool in self._pools:  # the bounds may be narrower now
            self._tell(pool.shrink())

    def _start_anew(self, count: str, why: str) -> None:
        self._counts[count] += 1
        logger.warning("what was kept to learn from is let go: %s", why)
        self._clear()
        self._is_changed = True


def _falls_under(held: Passage | SessionText, tombstone: Tombstone) -> bool:
    return tombstone.subject in subjects(tenant=held.tenant, scope=held.scope, session=held.session)


def _in_session(passage: Passage) -> tuple[str, str, str, float]:
    return passage.tenant, passage.scope, passage.session, passage.finished_at
