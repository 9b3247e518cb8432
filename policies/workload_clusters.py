"""Kinds of work found by themselves: an online clusterer over requests' wording, with stable names.

Two cases have no good fingerprint. A request without system prompt and tools has nothing to take
one of but its first message, which is another each time. And a system prompt that holds a date or
a session's name has another fingerprint each session. Both are told apart here by nearness: a text
seen for the first time joins the kind whose mean it is near enough to, else it founds one.

The clusterer is a leader algorithm (Hartigan 1975, ch. 3) over cosine nearness with running means,
as BIRCH keeps them (Zhang et al. 1996), without its tree: there are few enough clusters to compare
with all. A cluster is named after the text that founded it. That makes names stable: whoever sees
the same text first gives the same name, an old name is never given to something else, and a kind
that was dropped comes back under the name that it had. Clusters that have grown together are
merged, the smaller one's name stays as an alias. Beyond `ClusterSettings.max_clusters` the one that
counts least goes: requests counted with a half-life.

A text has three parts, of which it may lack some: system prompt, tools, and, only without both, the
first message. Two texts are near where every part is: an agent and its helper may share all tools.
The bars differ. Prompts of different agents under one policy are alike to nineteen of twenty
parts, so that only details may differ (`join_prompt`); first messages that are work of one kind
share a phrase or a template (`join_text`). What a wrong bar costs is speed at the margin, never an
answer: a workload is where a draft is looked for first.

One `WorkloadClusters` holds one sharing scope and knows of no other.

What the stored numbers tell. A mean is `NUM_BUCKETS` sums a part over all letter sequences of up
to 64 texts. Text cannot be read off it: each number mixes hundreds of sequences of the 2**18 that
are told apart, signs cancel, order is lost. But whoever holds it can *test a guess*: a text that
was a cluster's only member gives nearness 1 with it, a long common prompt can be recognised by who
has it, and for a text of a few words likely words can be tried one by one. The same holds for the
digests of examples. So means are as confidential as a list of fingerprints, not as the text: they
stay in their scope, and go when the tenant is forgotten. Texts are never stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np

from paceline.errors import ConfigError, RecordError
from paceline.policies.text_features import NUM_BUCKETS, Vectors, normalised

SCHEMA: Final = 1
NUM_PARTS: Final = 3
SYSTEM, TOOLS, TEXT = range(NUM_PARTS)
MEAN_TEXTS: Final = 64
"""Beyond so many texts a mean moves by a 64th each time: it follows a prompt that is edited."""
MERGE_TEXTS: Final = 3
"""A mean of fewer texts is no ground for merging."""
MAX_EXAMPLES: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """How near is near, and how much is kept.

    Attributes:
        max_clusters: most clusters of a scope.
        join_prompt: cosine from which system prompts, and tools, are one kind's.
        join_text: the same for first messages of requests without either.
        merge_prompt: cosine of two means from which their clusters are merged.
        merge_text: the same for first messages.
        half_life_seconds: after which a request counts half when the least counted has to go.

    Raises:
        ConfigError: a value is out of its range.
    """

    max_clusters: int = 256
    join_prompt: float = 0.97
    join_text: float = 0.4
    merge_prompt: float = 0.98
    merge_text: float = 0.7
    half_life_seconds: float = 86_400.0

    def __post_init__(self) -> None:
        if self.max_clusters < 1:
            raise ConfigError(f"max_clusters is {self.max_clusters}; set it to 1 or more")
        for name in ("join_prompt", "join_text", "merge_prompt", "merge_text"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise ConfigError(f"{name} is {value}; it is a cosine: above 0, at most 1")
        if not self.half_life_seconds > 0:
            raise ConfigError(f"half_life_seconds is {self.half_life_seconds}; set it above 0")


class Cluster(msgspec.Struct, frozen=True):
    """One kind of work; the record that is stored.

    Attributes:
        name: its stable id.
        parts: which parts its texts have, a bit each.
        mean: mean direction of each of them, float16, NUM_BUCKETS numbers a part.
        num_texts: different texts that have joined it.
        first_at: Unix time of the first.
        last_at: Unix time of the last.
        examples: digests of the latest, at most `MAX_EXAMPLES`.
        schema: of this record.
    """

    name: str
    parts: int
    mean: bytes
    num_texts: int
    first_at: float
    last_at: float
    examples: tuple[str, ...]
    schema: int = SCHEMA

    def vectors(self) -> Vectors:
        """float32, (NUM_PARTS, NUM_BUCKETS)."""
        made = np.zeros((NUM_PARTS, NUM_BUCKETS), np.float32)
        present = [part for part in range(NUM_PARTS) if self.parts >> part & 1]
        made[present] = np.frombuffer(self.mean, "<f2").reshape(len(present), NUM_BUCKETS)
        return normalised(made)


def encode_cluster(cluster: Cluster) -> bytes:
    """A cluster as bytes: about 1 KB a part."""
    return msgspec.msgpack.encode(cluster)


def decode_cluster(data: bytes) -> Cluster:
    """The cluster in `data`.

    Raises:
        RecordError: it is none, or of a newer schema.
    """
    try:
        cluster = msgspec.msgpack.decode(data, type=Cluster)
    except msgspec.DecodeError as error:
        raise RecordError(f"a workload's record cannot be read: {error}") from error
    if cluster.schema > SCHEMA:
        raise RecordError(
            f"a workload's record has schema {cluster.schema}, this version reads up to {SCHEMA}; "
            "update Paceline"
        )
    size = cluster.parts.bit_count() * NUM_BUCKETS * 2
    if not 0 < cluster.parts < 1 << NUM_PARTS or len(cluster.mean) != size:
        raise RecordError(
            f"a workload's record has parts {cluster.parts:#b} in {len(cluster.mean)} bytes; "
            f"expected {size}"
        )
    return cluster


@dataclass(frozen=True, slots=True)
class Example:
    """A text seen for the first time, without the text.

    Attributes:
        name: its digest, and the name of the cluster that it founds.
        vectors: of its parts, `NUM_PARTS` rows.
        at: Unix time.
    """

    name: str
    vectors: Vectors
    at: float


@dataclass(frozen=True, slots=True)
class Nearest:
    """The nearest cluster that is near enough, and the least cosine over the parts."""

    name: str
    nearness: float


@dataclass(frozen=True, slots=True)
class Change:
    """What placing a text comes to; nothing has happened until `WorkloadClusters.apply`.

    Attributes:
        name: the text's cluster.
        founded: whether it is new.
        put: clusters that are new or have changed.
        gone: names of clusters that are no more, each with its successor, "" for none.
    """

    name: str
    founded: bool
    put: tuple[Cluster, ...]
    gone: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """How often a cluster was asked for, and when last (Unix time)."""

    num_requests: int = 0
    last_at: float = 0.0


class WorkloadClusters:
    """The clusters of one sharing scope; used by one thread.

    Args:
        settings: bars and bounds.
        clusters: to start with.
        aliases: names that are no more, with their successors.
    """

    def __init__(
        self,
        settings: ClusterSettings | None = None,
        clusters: Iterable[Cluster] = (),
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self._settings = settings or ClusterSettings()
        self._clusters: dict[str, Cluster] = {}
        self._rows: list[str] = []
        self._means = np.zeros((0, NUM_PARTS, NUM_BUCKETS), np.float32)
        self._parts = np.zeros(0, np.int64)
        self._aliases: dict[str, str] = {}
        self._usage: dict[str, Usage] = {}
        self.take(clusters, aliases or {})

    def __len__(self) -> int:
        """Number of clusters."""
        return len(self._clusters)

    def __contains__(self, name: str) -> bool:
        return name in self._clusters

    def __getitem__(self, name: str) -> Cluster:
        return self._clusters[name]

    def clusters(self) -> list[Cluster]:
        """All clusters, in no order."""
        return list(self._clusters.values())

    @property
    def aliases(self) -> Mapping[str, str]:
        """Names of merged clusters with the names they go by now."""
        return self._aliases

    @property
    def is_full(self) -> bool:
        """Whether the next new cluster takes the place of another."""
        return len(self._clusters) >= self._settings.max_clusters

    def resolve(self, name: str) -> str:
        """The name that a cluster goes by now: its own unless it was merged. O(1)."""
        return self._aliases.get(name, name)

    def use(self, name: str, num_requests: int, at: float) -> None:
        """Count requests of a cluster; names that are none are ignored."""
        name = self.resolve(name)
        if name in self._clusters:
            before = self._usage.get(name, Usage())
            self._usage[name] = Usage(before.num_requests + num_requests, max(before.last_at, at))

    def set_usage(self, usage: Mapping[str, Usage]) -> None:
        """Put what is known elsewhere in the place of what was counted here."""
        self._usage = {name: used for name, used in usage.items() if name in self._clusters}

    def usage(self, name: str) -> Usage:
        """What was counted for a cluster; its texts count as a request each where nothing was."""
        cluster = self._clusters[name]
        return self._usage.get(name, Usage(cluster.num_texts, cluster.last_at))

    def nearest(self, vectors: Vectors, *, without: str = "") -> Nearest | None:
        """The nearest cluster among those near enough, None if there is none. O(clusters).

        Args:
            vectors: of the text's parts.
            without: a cluster that is left out.
        """
        settings = self._settings
        bars = (settings.join_prompt, settings.join_prompt, settings.join_text)
        return self._nearest(vectors, bars, without=without)

    def place(self, example: Example) -> Change:
        """Where a text belongs, and what that changes; changes nothing itself. O(clusters).

        A cluster that has grown by it is merged with another that it has come near to.

        Raises:
            ConfigError: all parts are empty.
        """
        found = self.nearest(example.vectors)
        if found is not None:
            return self._joined(_grown(self._clusters[found.name], example))
        founded = Cluster(
            name=example.name,
            parts=_parts_of(example.vectors),
            mean=_packed(example.vectors),
            num_texts=1,
            first_at=example.at,
            last_at=example.at,
            examples=(example.name,),
        )
        return Change(example.name, founded=True, put=(founded,), gone=self._displaced(example.at))

    def adopt(self, cluster: Cluster) -> Change:
        """The same for a whole cluster that was found elsewhere.

        It keeps its name where nothing is near, else that becomes an alias. One whose name is known
        here already adds nothing.
        """
        known = self.resolve(cluster.name)
        if known in self._clusters:
            return Change(known, founded=False, put=())
        found = self.nearest(cluster.vectors())
        if found is None:
            gone = self._displaced(cluster.last_at)
            return Change(cluster.name, founded=True, put=(cluster,), gone=gone)
        merged = _merged(self._clusters[found.name], cluster)
        return Change(found.name, founded=False, put=(merged,), gone={cluster.name: found.name})

    def expired(self, before: float) -> Change | None:
        """What dropping clusters without a text or a request since a time comes to."""
        old = [
            name
            for name, cluster in self._clusters.items()
            if max(cluster.last_at, self.usage(name).last_at) < before
        ]
        return Change("", founded=False, put=(), gone=dict.fromkeys(old, "")) if old else None

    def apply(self, change: Change) -> None:
        """Make a change that was agreed on."""
        self.take(change.put, change.gone)

    def take(self, put: Iterable[Cluster], gone: Mapping[str, str]) -> None:
        """Put clusters in, take names out; a name with a successor becomes its alias."""
        for name, successor in gone.items():
            if successor:
                self._alias(name, successor)
            self._remove(name)
        for cluster in put:
            self._put(cluster)

    def _nearest(
        self, vectors: Vectors, bars: Sequence[float], *, without: str = "", least_texts: int = 1
    ) -> Nearest | None:
        parts = _parts_of(vectors)
        present = [part for part in range(NUM_PARTS) if parts >> part & 1]
        same = np.flatnonzero(self._parts == parts)
        if not len(same):
            return None
        cosines = np.einsum("npb,pb->np", self._means[same][:, present], vectors[present])
        good = (cosines >= np.asarray([bars[part] for part in present])).all(axis=1)
        least = np.where(good, cosines.min(axis=1), -1.0)
        for row in np.argsort(-least, kind="stable"):
            if least[row] < 0:
                return None
            name = self._rows[same[row]]
            if name != without and self._clusters[name].num_texts >= least_texts:
                return Nearest(name, float(least[row]))
        return None

    def _joined(self, grown: Cluster) -> Change:
        settings = self._settings
        bars = (settings.merge_prompt, settings.merge_prompt, settings.merge_text)
        other = None
        if grown.num_texts >= MERGE_TEXTS:
            other = self._nearest(
                grown.vectors(), bars, without=grown.name, least_texts=MERGE_TEXTS
            )
        if other is None:
            return Change(grown.name, founded=False, put=(grown,))
        pair = (grown, self._clusters[other.name])
        # the one that is better known keeps its name; of equals the older
        lesser, greater = sorted(pair, key=lambda c: (c.num_texts, -c.first_at, c.name))
        return Change(
            greater.name,
            founded=False,
            put=(_merged(greater, lesser),),
            gone={lesser.name: greater.name},
        )

    def _displaced(self, now: float) -> dict[str, str]:
        """Whose place a new cluster takes: of those that count least."""
        too_many = len(self._clusters) + 1 - self._settings.max_clusters
        if too_many <= 0:
            return {}
        ranked = sorted(self._clusters, key=lambda name: (self._weight(name, now), name))
        return dict.fromkeys(ranked[:too_many], "")

    def _weight(self, name: str, now: float) -> float:
        used, cluster = self.usage(name), self._clusters[name]
        age = max(now - max(used.last_at, cluster.last_at), 0.0)
        count = max(used.num_requests, cluster.num_texts)
        return float(np.log2(count) - age / self._settings.half_life_seconds)

    def _put(self, cluster: Cluster) -> None:
        if cluster.name not in self._clusters:
            self._rows.append(cluster.name)
            self._means = np.concatenate((self._means, cluster.vectors()[None]))
            self._parts = np.append(self._parts, cluster.parts)
            self._aliases.pop(cluster.name, None)
        else:
            row = self._rows.index(cluster.name)
            self._means[row], self._parts[row] = cluster.vectors(), cluster.parts
        self._clusters[cluster.name] = cluster

    def _remove(self, name: str) -> None:
        self._usage.pop(name, None)
        if self._clusters.pop(name, None) is None:
            return
        row = self._rows.index(name)
        del self._rows[row]
        self._means = np.delete(self._means, row, axis=0)
        self._parts = np.delete(self._parts, row)
        for alias in [a for a, successor in self._aliases.items() if successor == name]:
            del self._aliases[alias]

    def _alias(self, name: str, successor: str) -> None:
        successor = self._aliases.get(successor, successor)
        for other, goes_by in self._aliases.items():
            if goes_by == name:
                self._aliases[other] = successor
        self._aliases[name] = successor
        while len(self._aliases) > self.max_aliases:
            del self._aliases[next(iter(self._aliases))]

    @property
    def max_aliases(self) -> int:
        """Most aliases kept; the oldest go first."""
        return 4 * self._settings.max_clusters


def _parts_of(vectors: Vectors) -> int:
    parts = sum(1 << part for part in range(NUM_PARTS) if vectors[part].any())
    if not parts:
        raise ConfigError("a text without system prompt, tools and first message has no kind")
    return parts


def _packed(vectors: Vectors) -> bytes:
    present = vectors[vectors.any(axis=1)]
    return normalised(present).astype("<f2").tobytes()


def _grown(cluster: Cluster, example: Example) -> Cluster:
    share = 1 / min(cluster.num_texts + 1, MEAN_TEXTS)
    mean = cluster.vectors() * (1 - share) + example.vectors * share
    examples = (*(e for e in cluster.examples if e != example.name), example.name)
    return msgspec.structs.replace(
        cluster,
        mean=_packed(mean),
        num_texts=cluster.num_texts + 1,
        last_at=max(cluster.last_at, example.at),
        examples=examples[-MAX_EXAMPLES:],
    )


def _merged(into: Cluster, other: Cluster) -> Cluster:
    weights = [min(c.num_texts, MEAN_TEXTS) for c in (into, other)]
    mean = into.vectors() * weights[0] + other.vectors() * weights[1]
    examples = dict.fromkeys((*other.examples, *into.examples))
    return msgspec.structs.replace(
        into,
        mean=_packed(mean),
        num_texts=into.num_texts + other.num_texts,
        first_at=min(into.first_at, other.first_at),
        last_at=max(into.last_at, other.last_at),
        examples=tuple(examples)[-MAX_EXAMPLES:],
    )
