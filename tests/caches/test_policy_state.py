"""What policies have seen, shared through a real Redis: counted once, found again, forgotten."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import msgspec
import pytest

from journals import MODEL, open_store
from paceline.caches.governance import MemoryGovernor
from paceline.caches.journal_store import JournalStore
from paceline.caches.policy_state import (
    SCHEMA,
    STALE_SECONDS,
    PolicyStore,
    StoredPolicy,
    decode_stored,
    keys_in,
    scope_subjects,
    state_without,
)
from paceline.caches.policy_sync import PolicySync
from paceline.caches.tombstones import Tombstone, subject_of
from paceline.errors import JournalError, RecordError
from paceline.policies.bandits import (
    Arm,
    Outcome,
    PolicyContext,
    PolicyState,
    ThompsonSampling,
    decode_state,
)
from redis_cluster import RedisCluster
from redis_server import RedisServer
from waiting import wait_until

LONG = Arm("memory", 8)
A, B = "tenant:a", "tenant:b"
SECONDS = 0.05
"""Between two writings, so that tests need not wait."""


class Replica:
    """A policy, and its share in Redis."""

    def __init__(self, url: str, name: str) -> None:
        self.policy = ThompsonSampling([LONG], rng=random.Random(0), discount=1.0)  # noqa: S311
        self.sync: PolicySync[PolicyState] = PolicySync(
            url,
            MODEL,
            self.policy,
            replica=name,
            decode=decode_state,
            interval_seconds=SECONDS,
        )
        self.open: list[Replica] = [self]

    def close(self) -> None:
        self.open.remove(self)
        self.sync.close()

    def see(self, key: str, num_outcomes: int = 1) -> None:
        context = PolicyContext.of(key=key, workload="w")
        for _ in range(num_outcomes):
            self.policy.update(context, LONG, Outcome(32, 0.48, 16))

    def knows(self, key: str) -> float:
        """Evidence on the arm, all replicas' together, in outcomes; nothing lent."""
        context = PolicyContext.of(key=key, workload="w")
        return self.policy._evidence.cell(context).tables[0].row(1)[0]

    def has(self, count: str, number: int = 1) -> bool:
        """Exchange once more; whether something has happened so often."""
        self.sync.exchange()
        return self.sync.stats()[count] >= number

    def comes_to_know(self, key: str, number: float) -> None:
        """Wait for it, while all replicas that are open go on exchanging."""

        def knows() -> bool:
            for each in self.open:
                each.sync.exchange()
            return self.knows(key) == pytest.approx(number)

        wait_until(knows)


@pytest.fixture
def replica() -> Iterator[Callable[[str, str], Replica]]:
    """Start replicas; they are closed after the test."""
    replicas: list[Replica] = []
    with ExitStack() as stack:

        def start(url: str, name: str) -> Replica:
            made = Replica(url, name)
            made.open = replicas
            replicas.append(made)
            made.sync.start()
            stack.callback(made.sync.close, timeout=0.5)
            return made

        yield start


def stored_keys(store: JournalStore) -> dict[str, list[object]]:
    """Keys in each replica's field."""
    return {
        name: list(keys_in(decode_stored(data).state))
        for name, data in PolicyStore(store, "thompson").read().items()
    }


@pytest.mark.redis
def test_replicas_know_what_all_have_seen_once(
    redis_server: RedisServer, replica: Callable[[str, str], Replica]
) -> None:
    """However often they exchange, evidence is the sum of what each has seen itself."""
    a, b = replica(redis_server.url, "A"), replica(redis_server.url, "B")
    a.see(A, 3)
    b.see(A, 4)
    b.see(B, 2)
    for each in (a, b):
        wait_until(lambda each=each: each.has("written"))
    for each in (a, b):
        each.comes_to_know(A, 7)
        each.comes_to_know(B, 2)
    for number in range(8, 12):  # each exchange brings everything anew
        (a, b)[number % 2].see(A, 1)
        for each in (a, b):
            each.comes_to_know(A, number)


@pytest.mark.redis
def test_a_restart_finds_its_own_and_others(
    redis_server: RedisServer, replica: Callable[[str, str], Replica]
) -> None:
    """Under the same name as its own, under another as a replica's that is gone."""
    a = replica(redis_server.url, "A")
    a.see(A, 5)
    wait_until(lambda: a.has("written"))
    a.close()
    again = replica(redis_server.url, "A")
    again.comes_to_know(A, 5)
    assert again.sync.stats()["loaded"] == 1
    again.see(A, 1)
    wait_until(lambda: again.has("written"))
    other = replica(redis_server.url, "B")
    other.comes_to_know(A, 6)
    assert other.sync.stats()["loaded"] == 0


@pytest.mark.redis
def test_closing_writes_what_was_seen_last(
    redis_server: RedisServer, replica: Callable[[str, str], Replica]
) -> None:
    """The last state is in Redis, and not only that of the last interval."""
    a = replica(redis_server.url, "A")
    a.see(A, 1)
    wait_until(lambda: a.has("written"))
    a.see(A, 4)
    a.close()
    replica(redis_server.url, "B").comes_to_know(A, 5)


@pytest.mark.redis
def test_a_policy_goes_on_without_redis(
    redis_server: RedisServer, replica: Callable[[str, str], Replica]
) -> None:
    """Away at the start, come, gone again and back: nothing raises, all is there in the end."""
    redis_server.kill()
    a = replica(redis_server.url, "A")
    a.see(A, 2)
    wait_until(lambda: a.has("disconnections"))
    assert a.sync.stats()["connected"] == 0
    redis_server.start()
    wait_until(lambda: a.has("written"))
    redis_server.kill()
    a.see(A, 3)
    wait_until(lambda: a.has("disconnections", 2))
    redis_server.start()
    replica(redis_server.url, "B").comes_to_know(A, 5)
    assert a.knows(A) == pytest.approx(5)


@pytest.mark.redis
def test_a_forgotten_tenant_is_gone_everywhere(
    redis_server: RedisServer, store: JournalStore, replica: Callable[[str, str], Replica]
) -> None:
    """From Redis at once, from every replica soon, also of one that is gone; the others stay."""
    a, b, gone = (replica(redis_server.url, name) for name in "ABC")
    for each in (a, b, gone):
        each.see(A, 2)
        each.see(B, 1)
        wait_until(lambda each=each: each.has("written"))
    gone.close()
    for each in (a, b):
        each.comes_to_know(A, 6)
    MemoryGovernor(store.client).forget(tenant="a")
    assert stored_keys(store) == {"A": [B], "B": [B], "C": [B]}
    for each in (a, b):
        each.comes_to_know(A, 0)
        each.comes_to_know(B, 3)
        assert each.sync.stats()["forgotten"] >= 1
    a.see(A, 1)  # said after it was forgotten
    b.comes_to_know(A, 1)
    a.comes_to_know(A, 1)


@pytest.mark.redis
def test_what_was_seen_before_a_tombstone_is_not_written(
    redis_server: RedisServer, store: JournalStore, replica: Callable[[str, str], Replica]
) -> None:
    """Evidence that had not reached Redis when its tenant was forgotten never does."""
    a = replica(redis_server.url, "A")
    wait_until(lambda: a.has("connected"))
    a.see(A, 2)
    a.see(B, 1)
    before = store.now()
    store.entomb(subject_of(tenant="a"), before)

    def is_settled() -> bool:
        a.sync.exchange()
        stored = stored_keys(store).get("A", [])
        assert A not in stored, "not even for a moment"
        return stored == [B] and a.sync.stats()["forgotten"] == 1

    wait_until(is_settled)
    a.comes_to_know(A, 0)
    assert a.sync.stats()["refused_forgotten"] >= 1


@pytest.mark.redis
def test_the_script_refuses_what_is_forgotten(store: JournalStore) -> None:
    """Whatever a replica overlooked: a key that began before its tombstone is not written."""
    policies = PolicyStore(store, "thompson")
    state = Replica("redis://localhost", "A").policy.state()
    store.entomb(subject_of(scope="group:g"), 100.0)
    for begun_at, is_written in ((99.0, False), (100.0, False), (100.5, True)):
        record = StoredPolicy(SCHEMA, 1.0, [("group:g", begun_at)], state)
        assert policies.write("A", record) == is_written


@pytest.mark.redis
def test_what_cannot_be_used_is_left_and_counted(
    redis_server: RedisServer, store: JournalStore, replica: Callable[[str, str], Replica]
) -> None:
    """Foreign bytes, a newer state and one of long ago spoil nothing; the last one is removed."""
    policies = PolicyStore(store, "thompson")
    newer = msgspec.msgpack.encode({"version": 99, "keys": []})
    good = Replica(redis_server.url, "X").policy.state()
    assert policies.write("newer", StoredPolicy(SCHEMA, store.now(), [], newer))
    assert policies.write("old", StoredPolicy(SCHEMA, store.now() - STALE_SECONDS - 1, [], good))
    store.client.hset(store.keys.policy("thompson"), "foreign", b"\x00junk")
    a = replica(redis_server.url, "A")
    a.see(A, 1)
    wait_until(lambda: a.has("written"))
    stats = a.sync.stats()
    assert stats["skipped_newer"] >= 1
    assert stats["skipped_malformed"] >= 1
    assert stats["skipped_stale"] >= 1
    assert set(policies.read()) == {"A", "newer", "foreign"}


@pytest.mark.redis
def test_a_broken_state_of_its_own_is_started_without(
    redis_server: RedisServer, store: JournalStore, replica: Callable[[str, str], Replica]
) -> None:
    """It is counted, and replaced by what is seen from now on."""
    broken = msgspec.msgpack.encode({"version": 1, "kind": 3, "keys": []})
    PolicyStore(store, "thompson").write("A", StoredPolicy(SCHEMA, store.now(), [], broken))
    a = replica(redis_server.url, "A")
    wait_until(lambda: a.has("skipped_malformed"))
    a.see(A, 2)
    a.comes_to_know(A, 2)
    replica(redis_server.url, "B").comes_to_know(A, 2)


@pytest.mark.redis
def test_forgetting_leaves_what_others_write_meanwhile(store: JournalStore) -> None:
    """A field that changed since it was read is not put back as it was."""
    policies = PolicyStore(store, "thompson")
    state = Replica("redis://localhost", "X").policy.state()
    old = StoredPolicy(SCHEMA, 1.0, [(A, 5.0)], state)
    policies.write("A", old)
    (data,) = policies.read().values()
    policies.write("A", StoredPolicy(SCHEMA, 2.0, [(A, 5.0)], state))
    assert not policies.swap("A", data, None)
    assert set(policies.read()) == {"A"}
    assert policies.forget({subject_of(scope=A): 9.0}) == 1
    assert decode_stored(policies.read()["A"]).begun == []
    store.client.hset(store.keys.policy("thompson"), "foreign", b"junk")
    policies.forget({})
    assert set(policies.read()) == {"A"}


@pytest.mark.redis
def test_a_cluster_takes_the_keys(
    tmp_path_factory: pytest.TempPathFactory, replica: Callable[[str, str], Replica]
) -> None:
    """They share a slot with the model's journal: the scripts run there too."""
    cluster = RedisCluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start()
        a, b = replica(cluster.url, "A"), replica(cluster.url, "B")
        a.see(A, 3)
        wait_until(lambda: a.has("written"))
        b.comes_to_know(A, 3)
        with closing(open_store(cluster.url).client) as client:
            MemoryGovernor(client).forget(scope=A)
        b.comes_to_know(A, 0)
        a.comes_to_know(A, 0)
    finally:
        cluster.kill()


def test_keys_are_taken_out_of_a_state() -> None:
    """And what is left is a state, with the other keys and all its fields."""
    made = Replica("redis://localhost", "X")
    for key in (A, B, "group:g"):
        made.see(key)
    state = made.policy.state()
    assert keys_in(state) == [A, B, "group:g"]
    rest = decode_state(state_without(state, {B}))
    assert [key.key for key in rest.keys] == [A, "group:g"]
    assert msgspec.structs.replace(rest, keys=[]) == msgspec.structs.replace(
        decode_state(state), keys=[]
    )


def test_a_private_scope_is_its_tenants() -> None:
    """Forgetting a tenant reaches its own scope, also under an adapter, and no group's."""
    assert subject_of(tenant="a") in scope_subjects("tenant:a")
    assert subject_of(tenant="a") in scope_subjects("tenant:a/adapter:x")
    assert scope_subjects("group:g") == (subject_of(scope="group:g"),)
    assert scope_subjects("global") == (subject_of(scope="global"),)
    assert Tombstone(subject_of(tenant="a"), 1.0).subject not in scope_subjects("tenant:b")


def test_what_is_no_record_is_refused() -> None:
    """Foreign bytes, a state without keys, and a newer schema."""
    state = Replica("redis://localhost", "X").policy.state()
    encode = msgspec.msgpack.encode
    for bad in (b"", b"junk", encode([SCHEMA, 1.0, [], b"junk"]), encode([SCHEMA, 1.0])):
        with pytest.raises(RecordError, match="is none"):
            decode_stored(bad)
    with pytest.raises(RecordError, match="schema 9"):
        decode_stored(encode([9, 1.0, [], state]))
    empty = encode({"version": 1, "keys": [[]]})
    with pytest.raises(RecordError, match="is none"):
        decode_stored(encode([SCHEMA, 1.0, [], empty]))


def test_an_interval_of_nothing_is_refused() -> None:
    """The value, the limit."""
    policy = ThompsonSampling([LONG], rng=random.Random(0))  # noqa: S311  test data
    with pytest.raises(JournalError, match="interval_seconds is 0"):
        PolicySync(
            *("redis://localhost", MODEL, policy),
            replica="A",
            decode=decode_state,
            interval_seconds=0,
        )
