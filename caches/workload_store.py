"""Kinds of work in Redis, so that all proxies give the same names: one record a kind and scope.

What a cluster is and where a text belongs is `policies`' business: here are bytes under names, and
the rule that of two proxies that meet one wins (`workload_scripts`). Everything of a sharing scope
is in one slot. What nobody uses goes after `ttl_seconds`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha1
from typing import Any, Final

from redis.exceptions import NoScriptError

from paceline.caches import workload_scripts as scripts
from paceline.caches.journal_client import Client
from paceline.caches.keys import KINDS_KEY, KindKeys, Shelf
from paceline.errors import RecordError

IDLE_SECONDS: Final = 30 * 86_400.0
"""A scope's kinds that nobody asks for go after this time, or after the tenants' retention."""
MAX_TEXTS: Final = 4096
"""Texts of a scope whose names are kept, about 100 bytes each; an older one is placed anew."""
SYNC_FIELDS: Final = 5
COMMITTED: Final = 1


@dataclass(frozen=True, slots=True)
class Position:
    """What of a scope one has seen.

    Attributes:
        generation: which life of the scope, "" before the first; forgetting begins another.
        version: number of changes in it.
    """

    generation: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True)
class Synced:
    """What has changed since a position.

    Attributes:
        position: the present one.
        forgotten_at: when the scope was forgotten last, Unix time by Redis's clock; 0 for never.
        text: name of the kind that the asked text belongs to, "" if it is not known.
        whole: whether this is everything, in place of what one had.
        put: records that are new or have changed, by name.
        gone: names that are no more, with what they go by, "" for nothing.
    """

    position: Position
    forgotten_at: float
    text: str
    whole: bool
    put: Mapping[str, bytes]
    gone: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class KindUse:
    """How often a kind was asked for, and when last (Unix time)."""

    num_requests: int
    last_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredKinds:
    """Everything of one scope, for showing it.

    Attributes:
        scope: sharing scope.
        tenants: who has said something into it.
        records: encoded clusters by name.
        aliases: merged names and what they go by.
        use: requests of each name.
    """

    scope: str
    tenants: tuple[str, ...]
    records: Mapping[str, bytes]
    aliases: Mapping[str, str]
    use: Mapping[str, KindUse] = field(default_factory=dict)


class WorkloadStore:
    """Kinds of work in one Redis; use one object a thread.

    Every method may raise what `journal_client.UNREACHABLE` lists.

    Args:
        client: a connected client.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def register(self, shelf: Shelf) -> None:
        """Say that a tenant has kinds in a scope, so that they can be shown and forgotten."""
        self._client.sadd(KINDS_KEY, shelf.name)

    def shelves(self) -> list[Shelf]:
        """Who has kinds, and in which scope."""
        return sorted(_shelves(self._client.smembers(KINDS_KEY)))

    def sync(self, scope: str, position: Position, *, text: str = "") -> Synced:
        """What has changed since `position`; all of it where the generation is another.

        Raises:
            RecordError: what Redis answers is none of ours.
        """
        asked = [position.generation, position.version, text]
        answer = self._run(scripts.SYNC, KindKeys(scope), asked)
        try:
            head, rows = answer[:SYNC_FIELDS], answer[SYNC_FIELDS:]
            generation, version, forgotten_at, known, whole = head
            put, gone = {}, {}
            for name, record, successor in zip(*[iter(rows)] * 3, strict=True):
                if record:
                    put[name.decode()] = record
                else:
                    gone[name.decode()] = successor.decode()
            return Synced(
                Position(generation.decode(), int(version)),
                float(forgotten_at),
                known.decode(),
                bool(whole),
                put,
                gone,
            )
        except (ValueError, TypeError, AttributeError) as error:
            raise RecordError(f"the kinds of a scope cannot be read: {error}") from error

    def commit(
        self,
        scope: str,
        position: Position,
        *,
        put: Mapping[str, bytes],
        gone: Mapping[str, str],
        text: tuple[str, str] | None,
        max_aliases: int,
        ttl_seconds: float = IDLE_SECONDS,
    ) -> Position | None:
        """Make a change; None if the scope is not at `position` any more: nothing has happened.

        Args:
            scope: sharing scope.
            position: what the change was decided from.
            put: records that are new or have changed, by name.
            gone: names that are no more, with what they go by from now on, "" for nothing.
            text: digest of a text and the name of its kind.
            max_aliases: merged names that are kept, the latest.
            ttl_seconds: how long the scope is kept from now on unless it is used again.
        """
        arguments: list[Any] = [position.generation, position.version, _milliseconds(ttl_seconds)]
        arguments += [*(text or ("", "")), MAX_TEXTS, max_aliases, len(put)]
        arguments += [part for item in (*put.items(), *gone.items()) for part in item]
        answer = self._run(scripts.COMMIT, KindKeys(scope), arguments)
        if answer[0] != COMMITTED:
            return None
        return Position(answer[1].decode(), int(answer[2]))

    def count(
        self,
        scope: str,
        generation: str,
        requests: Mapping[str, int],
        *,
        ttl_seconds: float = IDLE_SECONDS,
    ) -> bool:
        """Add requests of kinds; False if the scope has been forgotten meanwhile."""
        pairs = [part for item in requests.items() for part in item]
        arguments = [generation, _milliseconds(ttl_seconds), *pairs]
        return bool(self._run(scripts.COUNT, KindKeys(scope), arguments))

    def use(self, scope: str) -> dict[str, KindUse]:
        """How often each kind of a scope was asked for. O(kinds)."""
        keys = KindKeys(scope)
        counted = {name.decode(): int(n) for name, n in self._client.hgetall(keys.requests).items()}
        seen = self._client.zrange(keys.seen, 0, -1, withscores=True)
        return {
            name.decode(): KindUse(counted.get(name.decode(), 0), float(score) / 1000)
            for name, score in seen
        }

    def stored(self, *, tenant: str = "") -> Iterator[StoredKinds]:
        """Every scope that has kinds, or those that a tenant has said something into."""
        for scope, tenants in self._scopes(tenant=tenant).items():
            found = self.sync(scope, Position("-"))
            yield StoredKinds(
                scope=scope,
                tenants=tenants,
                records=found.put,
                aliases={name: by for name, by in found.gone.items() if by},
                use=self.use(scope),
            )

    def forget(self, *, tenant: str = "", scope: str = "") -> int:
        """Drop all kinds of the scopes that a tenant has said something into, or of one scope.

        Means and counts do not tell whose texts they are made of, so that all of a group's go; what
        its others do comes back by itself. What a proxy decides meanwhile is refused, and proxies
        drop what they hold when they look next.

        Returns:
            How many kinds were dropped.
        """
        found = self._scopes(tenant=tenant, scope=scope)
        num_dropped = 0
        for name, tenants in found.items():
            idle = _milliseconds(IDLE_SECONDS)
            num_dropped += int(self._run(scripts.FORGET, KindKeys(name), [idle]))
            for other in tenants:
                self._client.srem(KINDS_KEY, Shelf(name, other).name)
        return num_dropped

    def _scopes(self, *, tenant: str = "", scope: str = "") -> dict[str, tuple[str, ...]]:
        shelves = self.shelves()
        wanted = {s.scope for s in shelves if tenant in ("", s.tenant) and scope in ("", s.scope)}
        return {
            name: tuple(s.tenant for s in shelves if s.scope == name) for name in sorted(wanted)
        }

    def _run(self, script: str, keys: KindKeys, arguments: Sequence[Any]) -> Any:
        names = keys.all()
        sha = sha1(script.encode(), usedforsecurity=False).hexdigest()
        try:
            return self._client.evalsha(sha, len(names), *names, *arguments)
        except NoScriptError:
            return self._client.eval(script, len(names), *names, *arguments)


def _shelves(names: Any) -> Iterator[Shelf]:
    for name in names:
        try:
            yield Shelf.parse(name.decode())
        except (RecordError, UnicodeDecodeError):
            continue


def _milliseconds(seconds: float) -> int:
    return max(int(seconds * 1000), 1)
