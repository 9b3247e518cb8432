"""What is kept to learn from, bounded in bytes, and who of it comes next."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Final, NamedTuple

import numpy as np

from paceline.online.passages import Passage

MAX_WORKLOADS: Final = 64
"""Of a tenant, as clients may invent names; beyond it the one least recently written to goes."""


class BucketKey(NamedTuple):
    """What is kept apart."""

    tenant: str
    workload: str


class Bucket:
    """One workload's passages: the newest, and a uniform sample of those that came before.

    The sample is taken by random priorities (a reservoir whose size may change): each passage has
    one, and those with the least stay. What has been let go sets a bar that later ones must pass as
    well, so that each that ever left the newest has had the same chance.

    Args:
        max_recent: most passages of the newest.

    Attributes:
        recent: oldest first.
        kept: heap of (minus the priority, passage), the one that goes next first.
        bar: priorities that stay are below it, in [0, 1].
    """

    def __init__(self, max_recent: int) -> None:
        self._max_recent = max_recent
        self.recent: deque[Passage] = deque()
        self.kept: list[tuple[float, str, Passage]] = []
        self.bar = 1.0
        self.num_bytes = 0
        self.num_recent_bytes = 0
        self.num_said = 0

    def __len__(self) -> int:
        return len(self.recent) + len(self.kept)

    def __iter__(self) -> Iterator[Passage]:
        yield from self.recent
        for _, _, passage in self.kept:
            yield passage

    def add(self, passage: Passage) -> list[Passage]:
        """Take in the newest; returns what had to go for it."""
        self.restore_recent(passage)
        return self._age() if len(self.recent) > self._max_recent else []

    def restore_recent(self, passage: Passage) -> None:
        """Take in the newest, whatever is there already."""
        self.recent.append(passage)
        self._count(passage, 1)
        self.num_recent_bytes += passage.num_bytes

    def restore_kept(self, passage: Passage) -> None:
        """Take in one of the sample. O(log kept)."""
        heapq.heappush(self.kept, (-_priority(passage), passage.digest, passage))
        self._count(passage, 1)

    def shed(self, recent_share: float) -> list[Passage]:
        """Give up some room; returns what went, maybe nothing: call it again. O(log kept)."""
        if not self.kept or self.num_recent_bytes > recent_share * self.num_bytes:
            return self._age()
        return [self._pop()]

    def remove(self, is_gone: Callable[[Passage], bool]) -> list[Passage]:
        """Let some go; returns them. O(passages)."""
        gone = [passage for passage in self if is_gone(passage)]
        if gone:
            self.recent = deque(passage for passage in self.recent if not is_gone(passage))
            self.kept = [item for item in self.kept if not is_gone(item[2])]
            heapq.heapify(self.kept)
            for passage in gone:
                self._count(passage, -1)
            self.num_recent_bytes = sum(passage.num_bytes for passage in self.recent)
        return gone

    def _age(self) -> list[Passage]:
        """Move the oldest of the newest into the sample, if it passes the bar."""
        if not self.recent:
            return [self._pop()]
        oldest = self.recent.popleft()
        self.num_recent_bytes -= oldest.num_bytes
        priority = _priority(oldest)
        if priority >= self.bar:
            self._count(oldest, -1)
            return [oldest]
        heapq.heappush(self.kept, (-priority, oldest.digest, oldest))
        return []

    def _pop(self) -> Passage:
        minus_priority, _, passage = heapq.heappop(self.kept)
        self.bar = min(self.bar, -minus_priority)
        self._count(passage, -1)
        return passage

    def _count(self, passage: Passage, sign: int) -> None:
        self.num_bytes += sign * passage.num_bytes
        self.num_said += sign * passage.num_said


class Pool:
    """Passages of all workloads within one bound, of which nobody takes another's fair share.

    When it is full the tenant that holds most gives up some, of its workload that holds most. So
    who needs less than an equal share has all of it, and the others share the rest equally.

    Args:
        max_bytes: the bound, see `Passage.num_bytes`.
        max_recent: most of each workload's newest passages; older ones are sampled.
        recent_share: share of a workload's bytes that its newest may take when it has to give up
            some.
    """

    def __init__(self, max_bytes: int, *, max_recent: int, recent_share: float) -> None:
        self._max_bytes = max_bytes
        self._max_recent = max_recent
        self._recent_share = recent_share
        self.buckets: dict[BucketKey, Bucket] = {}
        """By the time of their last passage, oldest first."""
        self._tenant_bytes: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self.buckets.values())

    def __iter__(self) -> Iterator[Passage]:
        for key in sorted(self.buckets):
            yield from self.buckets[key]

    @property
    def num_bytes(self) -> int:
        """What all passages take."""
        return self._tenant_bytes.total()

    @property
    def num_said(self) -> int:
        """Tokens that they are there for."""
        return sum(bucket.num_said for bucket in self.buckets.values())

    def add(self, passage: Passage) -> list[Passage]:
        """Take one in; returns what had to go for it. O(workloads of all tenants)."""
        key = BucketKey(passage.tenant, passage.workload)
        gone: list[Passage] = []
        bucket = self.buckets.pop(key, None)
        if bucket is None:
            gone += self._make_room_for_a_bucket(passage.tenant)
            bucket = Bucket(self._max_recent)
        self.buckets[key] = bucket  # again, as the newest
        before = bucket.num_bytes
        gone += bucket.add(passage)
        self._tenant_bytes[key.tenant] += bucket.num_bytes - before
        return gone + self.shrink()

    def restore(self, key: BucketKey, bar: float) -> Bucket:
        """A new bucket to fill; `recount` afterwards."""
        bucket = self.buckets[key] = Bucket(self._max_recent)
        bucket.bar = bar
        return bucket

    def recount(self) -> None:
        """Count what buckets hold that were filled from outside."""
        self._tenant_bytes = Counter()
        for key, bucket in self.buckets.items():
            self._tenant_bytes[key.tenant] += bucket.num_bytes

    def shrink(self) -> list[Passage]:
        """Come back within the bound; returns what went."""
        gone: list[Passage] = []
        while self.num_bytes > self._max_bytes:
            tenant, _ = self._tenant_bytes.most_common(1)[0]
            key = max(self._keys_of(tenant), key=lambda key: (self.buckets[key].num_bytes, key))
            before = self.buckets[key].num_bytes
            gone += self.buckets[key].shed(self._recent_share)
            self._settle(key, before)
        return gone

    def remove(self, is_gone: Callable[[Passage], bool]) -> list[Passage]:
        """Let some go; returns them. O(passages)."""
        gone: list[Passage] = []
        for key, bucket in list(self.buckets.items()):
            before = bucket.num_bytes
            gone += bucket.remove(is_gone)
            self._settle(key, before)
        return gone

    def sample(
        self, num: int, rng: np.random.Generator, *, temper: float, recent_mix: float
    ) -> list[Passage]:
        """Passages at random, none twice; all of them if there are no more than `num`.

        Depends on what is held and on `rng` alone. O(passages + num * workloads).

        Args:
            num: how many.
            rng: where chance comes from.
            temper: workloads are chosen by their tokens to this power: 1 as they are, 0 all alike.
            recent_mix: chance to take one of a workload's newest.
        """
        keys = sorted(self.buckets)
        drawn = [_Draws(self.buckets[key], rng, recent_mix) for key in keys]
        weights = np.array([self.buckets[key].num_said for key in keys], np.float64) ** temper
        found: list[Passage] = []
        while len(found) < num and weights.sum() > 0:
            chosen = int(np.searchsorted(np.cumsum(weights), rng.random() * weights.sum(), "right"))
            chosen = min(chosen, len(keys) - 1)
            passage = drawn[chosen].next() if weights[chosen] > 0 else None
            if passage is None:
                weights[chosen] = 0
            else:
                found.append(passage)
        return found

    def _make_room_for_a_bucket(self, tenant: str) -> list[Passage]:
        keys = self._keys_of(tenant)
        if len(keys) < MAX_WORKLOADS:
            return []
        gone = list(self.buckets.pop(keys[0]))
        self._tenant_bytes[tenant] -= sum(passage.num_bytes for passage in gone)
        return gone

    def _keys_of(self, tenant: str) -> list[BucketKey]:
        return [key for key in self.buckets if key.tenant == tenant]

    def _settle(self, key: BucketKey, num_bytes_before: int) -> None:
        bucket = self.buckets[key]
        self._tenant_bytes[key.tenant] += bucket.num_bytes - num_bytes_before
        if not len(bucket):
            del self.buckets[key]
        if self._tenant_bytes[key.tenant] <= 0:
            del self._tenant_bytes[key.tenant]


class _Draws:
    """One bucket's passages in random order, the newest and the others by turns."""

    def __init__(self, bucket: Bucket, rng: np.random.Generator, recent_mix: float) -> None:
        self._rng = rng
        self._recent_mix = recent_mix
        self._bucket = bucket
        self._orders: list[list[Passage]] | None = None

    def next(self) -> Passage | None:
        """The next one, None if all were given."""
        if self._orders is None:  # only of those that are chosen at all
            kept = [passage for _, _, passage in self._bucket.kept]
            self._orders = [
                [part[i] for i in self._rng.permutation(len(part)).tolist()]
                for part in (list(self._bucket.recent), kept)
            ]
        recent, kept = self._orders
        takes_recent = self._rng.random() < self._recent_mix
        order = recent if (takes_recent and recent) or not kept else kept
        return order.pop() if order else None


def _priority(passage: Passage) -> float:
    """Uniform in [0, 1), and always the same for one passage."""
    named = f"{passage.digest} {passage.finished_at}".encode()
    return int.from_bytes(blake2b(named, digest_size=8).digest(), "big") / 2**64
