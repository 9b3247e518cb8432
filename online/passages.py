"""Passages: parts of sessions that a drafter learns from, put together from records.

A record holds what its session's earlier turns did not: tokens read, then tokens said. Put behind
one another they are what the target read. Passages are cut so that each token that was said is
taught once, with what stood before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import numpy as np
import numpy.typing as npt

from paceline.caches.records import SequenceRecord

DIGEST_BYTES: Final = 16
OVERHEAD_BYTES: Final = 512
"""What a passage or session takes beside its tokens, about."""
TOKEN_BYTES: Final = 5

TokenIds = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Passage:
    """A part of one session, in order, as the target read it.

    Attributes:
        token_ids: int32, (tokens,), at least two.
        is_said: bool, (tokens,). Which of them the target said and this passage is there for. What
            it had said in an earlier passage stands before them as read.
        tenant: who said it.
        scope: its sharing scope.
        workload: of the last turn in it, "" if unknown.
        session: id of the session; that of the request where it had none.
        begun_at: Unix time at which the first of the requests began that it can be of.
        finished_at: Unix time at which the last of them finished.
        origin: digest of the conversation's first prompt, "" where it is not known.
    """

    token_ids: TokenIds
    is_said: Flags
    tenant: str
    scope: str
    workload: str
    session: str
    begun_at: float
    finished_at: float
    origin: str = ""

    @property
    def conversation(self) -> str:
        """What its sessions are told apart by that begin alike: those are one conversation."""
        return conversation_of(self.tenant, self.session, self.origin)

    @property
    def num_said(self) -> int:
        """Tokens that it is there for."""
        return int(np.count_nonzero(self.is_said))

    @property
    def num_bytes(self) -> int:
        """What it takes in memory, about."""
        return TOKEN_BYTES * len(self.token_ids) + OVERHEAD_BYTES

    @property
    def digest(self) -> str:
        """Hex digest of its tokens and of whose they are: two tenants' never agree. O(tokens)."""
        hashed = blake2b(digest_size=DIGEST_BYTES)
        for name in (self.scope, self.tenant, self.session):
            encoded = name.encode("utf-8", "surrogatepass")
            hashed.update(len(encoded).to_bytes(4, "little") + encoded)
        hashed.update(self.token_ids.astype("<i4").tobytes())
        hashed.update(np.packbits(self.is_said).tobytes())
        return hashed.hexdigest()


def conversation_of(tenant: str, session: str, origin: str) -> str:
    """Name of what one tenant's sessions have in common that begin with the same prompt.

    Args:
        tenant: whose session it is.
        session: its id, which stands alone where nothing is known of its beginning.
        origin: digest of its first prompt, "" where it is not known.
    """
    return f"{tenant}\0{origin or session}"


@dataclass(frozen=True, slots=True)
class Cutting:
    """How passages are cut.

    Attributes:
        num_tokens: most tokens of a passage.
        num_context: least tokens before the first one that was said, where there are as many.
        num_session: most tokens that are held of a session; the earliest go first.
    """

    num_tokens: int = 1024
    num_context: int = 256
    num_session: int = 16_384


class SessionText:
    """What is known of one session: the end of what the target read, and what of it is taught.

    Args:
        cutting: how passages are cut.
        tenant: whose session it is.
        scope: its sharing scope.
        session: its id.
        origin: digest of its first prompt, "" where it is not known.
    """

    def __init__(
        self, cutting: Cutting, *, tenant: str, scope: str, session: str, origin: str = ""
    ) -> None:
        self.origin = origin
        self._cutting = cutting
        self.tenant = tenant
        self.scope = scope
        self.session = session
        self.workload = ""
        self.begun_at = np.inf
        self.finished_at = 0.0
        self.first = 0
        """Tokens of the session before those that are held."""
        self.taught = 0
        """Tokens of the session up to which what was said stands in a passage."""
        self.token_ids: TokenIds = np.empty(0, np.int32)
        self.is_said: Flags = np.empty(0, np.bool_)

    @property
    def num_bytes(self) -> int:
        """What it takes in memory, about."""
        return TOKEN_BYTES * len(self.token_ids) + OVERHEAD_BYTES

    @property
    def is_pending(self) -> bool:
        """Whether it holds tokens that were said and stand in no passage."""
        return bool(self.is_said[max(self.taught - self.first, 0) :].any())

    @property
    def _end(self) -> int:
        return self.first + len(self.token_ids)

    def take(self, record: SequenceRecord) -> list[Passage]:
        """Add a turn; returns the passages that are full, or whose end it changes. O(tokens).

        A turn that reads the history anew (on another engine) adds what is new of it. One that
        changes it, as a parallel one does, goes on from where they part. Where an earlier turn is
        missing what was known is let go, as nothing tells what stood between.
        """
        token_ids = np.asarray(record.token_ids, np.int32)
        is_said = np.arange(len(token_ids)) >= record.num_prompt
        start = self._start(record.num_before, token_ids)
        done: list[Passage] = []
        if not self.first <= start <= self._end:
            done = self.passages(ends=True)
            self._begin_anew(start)
        mine = self.token_ids[start - self.first :]
        num_same = _common(mine, token_ids)
        if num_same < len(token_ids):
            place = start + num_same
            if place < self._end:  # another branch follows; what this one said must not be lost
                done += self.passages(ends=True)
            kept = slice(0, place - self.first)
            self.token_ids = np.concatenate([self.token_ids[kept], token_ids[num_same:]])
            self.is_said = np.concatenate([self.is_said[kept], is_said[num_same:]])
            self.taught = min(self.taught, place)
        self.workload = record.workload
        self.begun_at = min(self.begun_at, record.begun_at)
        self.finished_at = max(self.finished_at, record.finished_at)
        done += self.passages(ends=False)
        self._bound()
        return done

    def passages(self, *, ends: bool) -> list[Passage]:
        """Cut what was said and is not taught yet into passages. O(tokens).

        Args:
            ends: also into one that has room left. Otherwise that one waits for the next turn.
        """
        cut: list[Passage] = []
        while True:
            begin = max(self.taught - self.first, 0)
            said = np.flatnonzero(self.is_said[begin:]) + begin
            if not len(said):
                return cut
            start = max(0, int(said[0]) - self._cutting.num_context)
            full = start + self._cutting.num_tokens
            if len(self.token_ids) < full and not ends:
                return cut
            end = int(said[np.searchsorted(said, full) - 1]) + 1
            start = max(0, min(start, end - self._cutting.num_tokens))
            self.taught = self.first + end
            if (found := self._passage(start, int(said[0]), end)) is not None:
                cut.append(found)

    def _passage(self, start: int, first_said: int, end: int) -> Passage | None:
        is_said = self.is_said[start:end].copy()
        is_said[: max(first_said - start, 1)] = False  # nothing stands before the very first
        if not is_said.any():
            return None
        return Passage(
            token_ids=self.token_ids[start:end].copy(),
            is_said=is_said,
            tenant=self.tenant,
            scope=self.scope,
            workload=self.workload,
            session=self.session,
            begun_at=float(self.begun_at),
            finished_at=self.finished_at,
            origin=self.origin,
        )

    def _start(self, num_before: int, token_ids: TokenIds) -> int:
        """Where a turn's tokens begin in the session."""
        if num_before >= 0:
            return num_before
        is_whole = self.first == 0 and _common(self.token_ids, token_ids) == len(self.token_ids)
        return 0 if is_whole else self._end

    def _begin_anew(self, start: int) -> None:
        self.token_ids, self.is_said = self.token_ids[:0].copy(), self.is_said[:0].copy()
        self.first = self.taught = start
        self.begun_at, self.finished_at = np.inf, 0.0

    def _bound(self) -> None:
        excess = len(self.token_ids) - self._cutting.num_session
        if excess > 0:
            self.first += excess
            self.token_ids = self.token_ids[excess:].copy()
            self.is_said = self.is_said[excess:].copy()


def _common(one: TokenIds, other: TokenIds) -> int:
    """How many tokens two texts begin alike with."""
    length = min(len(one), len(other))
    differs = np.flatnonzero(one[:length] != other[:length])
    return int(differs[0]) if len(differs) else length
