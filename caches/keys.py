"""Where things live in Redis: layout 2. Nothing else in the project spells a key.

::

    paceline:2:models                          hash    NAMESPACE -> model and tokenizer, as JSON
    paceline:2:{NAMESPACE}:shelves             zset    SHELF by time of its last record, ms
    paceline:2:{NAMESPACE}:owned:TENANT        set     shelves of a tenant
    paceline:2:{NAMESPACE}:tail:SHELF          stream  newest records, one an entry
    paceline:2:{NAMESPACE}:index:SHELF         zset    its segments by the time of their last record
    paceline:2:{NAMESPACE}:segment:SHELF:ID    string  a block of records, compressed
    paceline:2:{NAMESPACE}:shelf:SHELF         hash    what the shelf holds, and its epoch
    paceline:2:{NAMESPACE}:tenant:TENANT       hash    what the tenant holds: records, tokens, bytes
    paceline:2:{NAMESPACE}:workloads:SHELF     zset    H:WORKLOAD with phrases by time of use, ms
    paceline:2:{NAMESPACE}:phrases:SHELF:H:WORKLOAD  zset  phrases by log2 of their count, which
                                                       halves every H seconds
    paceline:2:{NAMESPACE}:policies            set     kinds of policies that have states
    paceline:2:{NAMESPACE}:policy:KIND         hash    replica -> what its policy has seen
    paceline:2:{NAMESPACE}:drafter-groups      set     groups of tenants that have a drafter
    paceline:2:{NAMESPACE}:drafter:GROUP       hash    which version is current, canary, last good
    paceline:2:{NAMESPACE}:drafter-versions:GROUP  hash  VERSION -> what it is, as JSON
    paceline:2:{NAMESPACE}:drafter-states:GROUP    hash  VERSION -> STATE:REASON
    paceline:2:{NAMESPACE}:drafter-claims:GROUP    hash  VERSION -> time its files began to be
                                                         written, 0: they are to be removed
    paceline:2:{NAMESPACE}:drafter-live:GROUP  hash    replica -> how its version does, as JSON
    paceline:2:{NAMESPACE}:lease:NAME          string  who seals a shelf or sweeps, for a while
    paceline:2:{NAMESPACE}:seen:REQUEST        string  a request that has been recorded, for a while
    paceline:2:{NAMESPACE}:bell                stream  shelves that got something new
    paceline:2:{NAMESPACE}:control             stream  tombstones as they come
    paceline:2:{NAMESPACE}:forgotten           hash    subject of a tombstone -> time it reaches to

    paceline:2:kinds                           set     SHELF that has kinds of work
    paceline:2:{kinds:SCOPE}:state             hash    generation, version, time of forgetting
    paceline:2:{kinds:SCOPE}:clusters          hash    NAME -> cluster, as `policies` encodes it
    paceline:2:{kinds:SCOPE}:changed           zset    NAME by the version that changed it last
    paceline:2:{kinds:SCOPE}:aliases           hash    NAME of a merged kind -> name it goes by
    paceline:2:{kinds:SCOPE}:texts             hash    digest of a text -> NAME
    paceline:2:{kinds:SCOPE}:recent            zset    digests of texts by time, ms
    paceline:2:{kinds:SCOPE}:requests          hash    NAME -> requests counted
    paceline:2:{kinds:SCOPE}:seen              zset    NAME by time of its last request, ms

    paceline:limits:1:{TENANT}:requests:WORKLOAD  hash  a window of requests
    paceline:limits:1:{TENANT}:tokens:WORKLOAD    hash  a window of tokens
    paceline:limits:1:{TENANT}:places:WORKLOAD    zset  requests under way by the end of their lease

    paceline:answers:1:{TENANT}:records        hash    id of an answer that an engine keeps -> which
                                                       engine, and of which session, as JSON
    paceline:answers:1:{TENANT}:times          zset    ids by the time of their last use, ms

``2`` is the schema of the layout. NAMESPACE is a digest of model and tokenizer, in braces so that a
Redis Cluster keeps one model's keys in one slot: every change of them is one script. SHELF is
``SCOPE:TENANT``: what one tenant has said into one sharing scope. Names are percent-encoded: they
are free text and must not reach into other keys. Kinds of work are the same for all models, so they
have a namespace for each sharing scope, a digest of its name. Limits have a layout of their own, 1,
and a slot for each tenant; an empty WORKLOAD stands for all of the tenant's. So have answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Self
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from paceline.caches.records import ModelFingerprint
from paceline.errors import RecordError

LAYOUT: Final = 2
LIMITS_LAYOUT: Final = 1
ANSWERS_LAYOUT: Final = 1
RECORD_FIELD: Final = b"r"
TOKENS_FIELD: Final = b"n"
ORIGIN_FIELD: Final = b"o"
SHELF_FIELD: Final = b"s"
MODELS_KEY: Final = f"paceline:{LAYOUT}:models"
KINDS_KEY: Final = f"paceline:{LAYOUT}:kinds"
DIGEST_BYTES: Final = 8


@dataclass(frozen=True, slots=True, order=True)
class Shelf:
    """What one tenant has said into one sharing scope: the unit that is kept, bounded, forgotten.

    Attributes:
        scope: sharing scope whose requests may draft from it.
        tenant: who pays for it.
    """

    scope: str
    tenant: str

    @property
    def name(self) -> str:
        """Its name in keys."""
        return f"{_encoded(self.scope)}:{_encoded(self.tenant)}"

    @classmethod
    def parse(cls, name: str) -> Self:
        """The shelf of a name.

        Raises:
            RecordError: it is none.
        """
        scope, colon, tenant = name.partition(":")
        if not colon:
            raise RecordError(f"{name!r} names no shelf; expected SCOPE:TENANT, percent-encoded")
        return cls(unquote(scope), unquote(tenant))


class JournalKeys:
    """Keys of one model's journal.

    Args:
        namespace: see `namespace_of`.
    """

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self._prefix = f"paceline:{LAYOUT}:{{{namespace}}}"
        self.shelves = f"{self._prefix}:shelves"
        self.bell = f"{self._prefix}:bell"
        self.control = f"{self._prefix}:control"
        self.forgotten = f"{self._prefix}:forgotten"
        self.policies = f"{self._prefix}:policies"
        self.drafter_groups = f"{self._prefix}:drafter-groups"

    def owned(self, tenant: str) -> str:
        """Set of a tenant's shelves."""
        return f"{self._prefix}:owned:{_encoded(tenant)}"

    def tail(self, shelf: Shelf) -> str:
        """Stream of a shelf's newest records."""
        return f"{self._prefix}:tail:{shelf.name}"

    def index(self, shelf: Shelf) -> str:
        """Sorted set of a shelf's segments."""
        return f"{self._prefix}:index:{shelf.name}"

    def segment(self, shelf: Shelf, last_id: str) -> str:
        """One segment: the block whose last record had that id in the tail."""
        return f"{self._prefix}:segment:{shelf.name}:{last_id}"

    def shelf(self, shelf: Shelf) -> str:
        """Hash of a shelf's sizes."""
        return f"{self._prefix}:shelf:{shelf.name}"

    def tenant(self, tenant: str) -> str:
        """Hash of a tenant's sizes."""
        return f"{self._prefix}:tenant:{_encoded(tenant)}"

    def workloads(self, shelf: Shelf) -> str:
        """Sorted set of a shelf's workloads that have phrases."""
        return f"{self._prefix}:workloads:{shelf.name}"

    def phrases(self, shelf: Shelf, entry: str) -> str:
        """Sorted set of a workload's phrases; entry: half-life in seconds, ``:``, workload."""
        return f"{self._prefix}:phrases:{shelf.name}:{_encoded(entry)}"

    def policy(self, kind: str) -> str:
        """Hash of replicas' states of one kind of policy."""
        return f"{self._prefix}:policy:{_encoded(kind)}"

    def drafter(self, group: str) -> DrafterKeys:
        """Keys of the drafter of a group."""
        return DrafterKeys(self._prefix, self.drafter_groups, _encoded(group))

    def lease(self, name: str) -> str:
        """Who does some upkeep at the moment."""
        return f"{self._prefix}:lease:{name}"

    def seen(self, shelf: Shelf, request_id: str) -> str:
        """Mark of a request that has been recorded; holds no readable name."""
        return f"{self._prefix}:seen:{digest(shelf.scope, shelf.tenant, request_id)}"


class DrafterKeys:
    """Keys of one group's drafter, in the slot of its model.

    Args:
        prefix: of the model's keys.
        groups: set of all groups.
        name: the group's, percent-encoded.
    """

    def __init__(self, prefix: str, groups: str, name: str) -> None:
        self.state = f"{prefix}:drafter:{name}"
        self.versions = f"{prefix}:drafter-versions:{name}"
        self.states = f"{prefix}:drafter-states:{name}"
        self.claims = f"{prefix}:drafter-claims:{name}"
        self.live = f"{prefix}:drafter-live:{name}"
        self.groups = groups

    def all(self) -> list[str]:
        """Every key, in the order that the scripts take them."""
        return [self.state, self.versions, self.states, self.claims, self.live, self.groups]


class KindKeys:
    """Keys of the kinds of work in one sharing scope, all in one slot.

    Args:
        scope: its name; the keys hold a digest of it.
    """

    def __init__(self, scope: str) -> None:
        prefix = f"paceline:{LAYOUT}:{{kinds:{digest(scope)}}}"
        self.state = f"{prefix}:state"
        self.clusters = f"{prefix}:clusters"
        self.changed = f"{prefix}:changed"
        self.aliases = f"{prefix}:aliases"
        self.texts = f"{prefix}:texts"
        self.recent = f"{prefix}:recent"
        self.requests = f"{prefix}:requests"
        self.seen = f"{prefix}:seen"

    def all(self) -> list[str]:
        """Every key, the state first, in the order that the scripts take them."""
        names = (self.state, self.clusters, self.changed, self.aliases)
        return [*names, self.texts, self.recent, self.requests, self.seen]


class LimitKeys:
    """Keys of one tenant's limits; all in one slot, and all gone when nothing was asked for long.

    Args:
        tenant: its name.
    """

    def __init__(self, tenant: str) -> None:
        self._prefix = f"paceline:limits:{LIMITS_LAYOUT}:{{{_encoded(tenant)}}}"

    def requests(self, workload: str) -> str:
        """Window of requests; workload: "" for all of the tenant."""
        return f"{self._prefix}:requests:{_encoded(workload)}"

    def tokens(self, workload: str) -> str:
        """Window of tokens."""
        return f"{self._prefix}:tokens:{_encoded(workload)}"

    def places(self, workload: str) -> str:
        """Sorted set of requests under way."""
        return f"{self._prefix}:places:{_encoded(workload)}"


class AnswerKeys:
    """Keys of one tenant's kept answers; both in one slot.

    Args:
        tenant: its name.
    """

    def __init__(self, tenant: str) -> None:
        prefix = f"paceline:answers:{ANSWERS_LAYOUT}:{{{_encoded(tenant)}}}"
        self.records = f"{prefix}:records"
        self.times = f"{prefix}:times"

    def all(self) -> list[str]:
        """Both, in the order that the scripts take them."""
        return [self.records, self.times]


class LegacyKeys:
    """Keys of layout 1, which an older Paceline wrote: one stream a scope.

    Args:
        namespace: see `namespace_of`; the same in both layouts.
    """

    def __init__(self, namespace: str) -> None:
        self._prefix = f"paceline:1:{{{namespace}}}"
        self.scopes = f"{self._prefix}:scopes"

    def journal(self, scope: str) -> str:
        """Stream of a scope's records."""
        return f"{self._prefix}:journal:{_encoded(scope)}"


def namespace_of(fingerprint: ModelFingerprint) -> str:
    """Digest of model and tokenizer, hex: journals of different ones never meet."""
    named = f"{fingerprint.model}\0{fingerprint.tokenizer}".encode()
    return blake2b(named, digest_size=DIGEST_BYTES).hexdigest()


def digest(*parts: str) -> str:
    """Hex digest of some names, order and borders included."""
    hashed = blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        hashed.update(len(encoded).to_bytes(8, "little") + encoded)
    return hashed.hexdigest()


def redact_url(url: str) -> str:
    """`url` with its password replaced by ``***``: safe to log and to print."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user_and_password, _, host = parts.netloc.rpartition("@")
    user = user_and_password.partition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{user}:***@{host}"))


def _encoded(name: str) -> str:
    return quote(name, safe="", errors="surrogatepass")
