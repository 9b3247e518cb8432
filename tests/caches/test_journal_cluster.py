"""The journal on a real Redis Cluster of three nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import redis

from journals import SHELF, Engine, append, check_accounts, keeper, open_store, record, stored_ids
from paceline.caches import ModelFingerprint
from paceline.caches.governance import MemoryGovernor
from paceline.caches.journal_client import RedisAddress
from paceline.caches.keys import JournalKeys, LegacyKeys, namespace_of
from paceline.caches.records import encode_record
from redis_cluster import RedisCluster
from waiting import wait_until

pytestmark = pytest.mark.redis


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Three nodes."""
    made = RedisCluster(tmp_path_factory.mktemp("cluster"))
    try:
        made.start()
        yield made
    finally:
        made.kill()


@pytest.fixture(autouse=True)
def _empty(cluster: RedisCluster) -> None:
    for node in cluster.nodes:
        with node.client() as client:
            client.flushall()


def models(count: int) -> list[ModelFingerprint]:
    return [ModelFingerprint(model=f"m{number}", tokenizer="t") for number in range(count)]


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
def test_a_node_of_a_cluster_is_recognised(cluster: RedisCluster, scheme: str) -> None:
    """Named as such or not, its URL leads to the whole cluster."""
    with closing(RedisAddress(cluster.url.replace("redis", scheme, 1)).connect()) as client:
        assert isinstance(client, redis.RedisCluster)
        assert len(client.get_primaries()) == 3


def test_engines_share_whichever_node_holds_their_model(
    cluster: RedisCluster, engine: Callable[..., Engine]
) -> None:
    """Models fall on different nodes; each one's engines meet, warm up and forget."""
    slots = set()
    for model in models(4):
        a, b = engine(cluster.url, "A", model), engine(cluster.url, "B", model)
        wait_until(b.journal.warmed_up.is_set)
        a.journal.publish(record(1))
        wait_until(lambda b=b: b.ids() == ["request-1"])
        late = engine(cluster.url, "C", model)
        wait_until(late.journal.warmed_up.is_set)
        assert late.ids() == ["request-1"]
        with closing(RedisAddress(cluster.url).connect()) as client:
            tail = JournalKeys(namespace_of(model)).bell
            slots.add(client.get_node_from_key(tail).port)
    assert len(slots) > 1
    with closing(RedisAddress(cluster.url).connect()) as client:
        receipt = MemoryGovernor(client).forget(tenant="a")
    assert (receipt.num_models, receipt.removed.num_records) == (4, 4)
    wait_until(lambda: len(late.forgotten) == 1, seconds=1.0)


def test_every_operation_works_in_a_cluster(cluster: RedisCluster) -> None:
    """Sealing, evicting, settling and migrating touch one slot each, and the accounts agree."""
    for model in models(3):
        store = open_store(cluster.url, model)
        with closing(store.client):
            appended = append(store, *(record(number) for number in range(40)))
            made, counts = keeper(segment_tokens=100, max_shelf_tokens=250)
            assert made.note(SHELF, appended[-1])
            made.work(store)
            assert counts["sealed"] == 4
            assert check_accounts(store, "a").num_tokens <= 250
            assert stored_ids(store)[-1] == "request-39"
            legacy = LegacyKeys(namespace_of(model))
            store.client.sadd(legacy.scopes, "tenant:a")
            store.client.xadd(legacy.journal("tenant:a"), {"r": encode_record(record(99))})
            assert made.sweep(store)
            assert stored_ids(store)[-1] == "request-99"
            assert not store.client.exists(legacy.scopes)
