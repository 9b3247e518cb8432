"""Engines share what they served through a real Redis, and outlive it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest

from journals import MODEL, Engine, append, open_store, record
from paceline.caches import ModelFingerprint, SequenceRecord
from paceline.caches.embedded_store import EmbeddedStore
from paceline.caches.journal import Journal
from paceline.caches.journal_keeper import StoreLimits
from paceline.caches.keys import JournalKeys, Shelf, namespace_of, redact_url
from paceline.caches.records import encode_record
from paceline.errors import ConfigError, JournalError
from redis_server import RedisServer
from waiting import wait_until

pytestmark = pytest.mark.redis


def test_what_one_publishes_the_other_gets_once(
    redis_server: RedisServer, engine: Callable[..., Engine]
) -> None:
    """A record reaches the other engine within a second, unchanged, and not its writer."""
    a, b = engine(redis_server.url, "A"), engine(redis_server.url, "B")
    wait_until(b.journal.warmed_up.is_set)
    started = time.monotonic()
    a.journal.publish(record(1))
    wait_until(lambda: b.ids() == ["request-1"], seconds=1.0)
    assert time.monotonic() - started < 1.0
    np.testing.assert_array_equal(b.got[0].token_ids, record(1).token_ids)
    wait_until(lambda: a.journal.stats()["skipped_own"] == 1)
    assert a.got == []


def test_scopes_that_appear_later_are_followed(
    redis_server: RedisServer, engine: Callable[..., Engine]
) -> None:
    """A tenant's first record ever reaches an engine that was already reading others."""
    a, b = engine(redis_server.url, "A"), engine(redis_server.url, "B")
    for number, scope in enumerate(("tenant:a", "tenant:b", "group:x/y {z}:*")):
        a.journal.publish(record(number, scope=scope))
        wait_until(lambda n=number: len(b.got) == n + 1)
    assert [r.scope for r in b.got] == ["tenant:a", "tenant:b", "group:x/y {z}:*"]


def test_a_restarted_engine_gets_its_memory_back_oldest_first(
    redis_server: RedisServer, engine: Callable[..., Engine]
) -> None:
    """A new process warms up from all scopes, each in the order in which it was said."""
    a = engine(redis_server.url, "A")
    for number in range(200):
        a.journal.publish(record(number, scope=f"tenant:{number % 3}"))
    assert a.journal.flush(10)
    again = engine(redis_server.url, "A2")
    wait_until(again.journal.warmed_up.is_set)
    assert sorted(again.ids()) == sorted(f"request-{n}" for n in range(200))
    for scope in range(3):
        own = [
            i for i, r in zip(again.ids(), again.got, strict=True) if r.scope == f"tenant:{scope}"
        ]
        assert own == [f"request-{n}" for n in range(scope, 200, 3)]


def test_warm_up_takes_the_newest_within_its_budget(
    redis_server: RedisServer, engine: Callable[..., Engine]
) -> None:
    """With room for five records the five newest come back, oldest of them first.

    Later ones still follow.
    """
    a = engine(redis_server.url, "A")
    for number in range(20):
        a.journal.publish(record(number))
    assert a.journal.flush(10)
    b = engine(redis_server.url, "B", warm_up_tokens=50)
    wait_until(b.journal.warmed_up.is_set)
    assert b.ids() == [f"request-{n}" for n in range(15, 20)]
    a.journal.publish(record(99))
    wait_until(lambda: b.ids()[-1] == "request-99")
    assert len(b.got) == 6


def test_a_killed_redis_loses_no_queued_record(
    redis_server: RedisServer, engine: Callable[..., Engine]
) -> None:
    """Records published while Redis is dead arrive after it is back, each once, in order."""
    a, b = engine(redis_server.url, "A"), engine(redis_server.url, "B")
    a.journal.publish(record(0))
    wait_until(lambda: len(b.got) == 1)
    redis_server.kill()
    for number in range(1, 50):
        a.journal.publish(record(number))
    wait_until(lambda: a.journal.stats()["disconnections"] > 0)
    redis_server.start()
    wait_until(lambda: len(b.got) == 50)
    assert b.ids() == [f"request-{n}" for n in range(50)]
    assert a.journal.stats()["dropped"] == 0


def test_a_redis_that_comes_later_is_found(
    start_redis: Callable[..., RedisServer], engine: Callable[..., Engine]
) -> None:
    """An engine started before its Redis connects when it comes."""
    server = start_redis()
    server.kill()
    a = engine(server.url, "A")
    a.journal.publish(record(1))
    server.start()
    assert a.journal.flush(10)


def test_a_frozen_redis_never_blocks_publishing_and_drops_are_counted(
    redis_server: RedisServer, engine: Callable[..., Engine]
) -> None:
    """With Redis frozen publishing returns, the queue keeps its bound and drops are counted."""
    a = engine(redis_server.url, "A", queue_records=10)
    redis_server.freeze()
    try:
        for number in range(30):
            a.journal.publish(record(number))
        stats = a.journal.stats()
        assert (stats["queued"], stats["dropped"]) == (10, 20)
    finally:
        redis_server.thaw()
    assert a.journal.flush(20)


def test_what_waits_is_bounded_in_tokens_too(
    redis_server: RedisServer, engine: Callable[..., Engine]
) -> None:
    """The oldest go until the rest fits; the newest stays however long it is."""
    a = engine(redis_server.url, "A", queue_tokens=100)
    redis_server.freeze()
    try:
        for number, num_tokens in enumerate((40, 40, 40, 30, 500, 60, 40)):
            a.journal.publish(record(number, num_tokens=num_tokens))
            stats = a.journal.stats()
            assert stats["queued"] == (1, 2, 2, 2, 1, 1, 2)[number]
        assert stats["dropped"] == 5
    finally:
        redis_server.thaw()
    assert a.journal.flush(20)


def test_a_producer_that_follows_nothing_publishes_and_keeps_house(
    redis_server: RedisServer, engine: Callable[..., Engine]
) -> None:
    """It reads no record and no tombstone, and what it publishes is sealed all the same."""
    limits = StoreLimits(segment_tokens=100, seal_after_seconds=0.0)
    producer = engine(redis_server.url, "P", follows=False, limits=limits)
    reader = engine(redis_server.url, "B")
    wait_until(reader.journal.warmed_up.is_set)
    reader.journal.publish(record(99))
    for number in range(20):
        producer.journal.publish(record(number))
    wait_until(lambda: len(reader.got) == 20)
    wait_until(lambda: producer.journal.stats()["sealed"] > 0)
    stats = producer.journal.stats()
    assert (stats["connected"], stats["published"]) == (1, 20)
    assert (stats["received"], stats["skipped_own"], producer.got) == (0, 0, [])
    redis_server.kill()
    producer.journal.publish(record(100))
    wait_until(lambda: producer.journal.stats()["connected"] == 0)


def test_a_flushed_redis_is_followed_again(
    redis_server: RedisServer, engine: Callable[..., Engine]
) -> None:
    """After all data is deleted new records still arrive."""
    a, b = engine(redis_server.url, "A"), engine(redis_server.url, "B")
    a.journal.publish(record(1))
    wait_until(lambda: len(b.got) == 1)
    redis_server.client().flushall()
    a.journal.publish(record(2))
    wait_until(lambda: b.ids() == ["request-1", "request-2"])


def test_models_never_meet(redis_server: RedisServer, engine: Callable[..., Engine]) -> None:
    """An engine of another model or another tokenizer gets nothing."""
    others = [
        engine(redis_server.url, "B", ModelFingerprint(model="m2", tokenizer="t")),
        engine(redis_server.url, "C", ModelFingerprint(model="m", tokenizer="t2")),
    ]
    a, twin = engine(redis_server.url, "A"), engine(redis_server.url, "D")
    a.journal.publish(record(1))
    wait_until(lambda: len(twin.got) == 1)
    assert [other.got for other in others] == [[], []]


def test_foreign_entries_are_skipped_and_counted(
    redis_server: RedisServer, engine: Callable[..., Engine]
) -> None:
    """Garbage, records of a newer schema and records of another shelf are counted apart.

    The next record arrives.
    """
    b = engine(redis_server.url, "B")
    wait_until(b.journal.warmed_up.is_set)
    keys = JournalKeys(namespace_of(MODEL))
    fields = msgspec.msgpack.decode(encode_record(record(1)))
    newer = msgspec.msgpack.encode([2, *fields[1:]])
    foreign = encode_record(record(2, scope="tenant:other"))
    with closing(redis_server.client()) as client:
        client.xadd(keys.bell, {"s": "no shelf"})
        client.xadd(keys.bell, {"nothing": "known"})
        client.xadd(keys.control, {"nothing": "known"})
        for data in (b"garbage", newer, foreign):
            client.xadd(keys.tail(Shelf("tenant:a", "a")), {"r": data, "n": "many"})
    store = open_store(redis_server.url)
    with closing(store.client):
        append(store, record(3))
    wait_until(lambda: b.ids() == ["request-3"])
    stats = b.journal.stats()
    assert [stats[name] for name in ("skipped_malformed", "skipped_newer")] == [2, 1]


def test_a_request_of_two_producers_is_taken_once(
    redis_server: RedisServer, engine: Callable[..., Engine]
) -> None:
    """A worker and a proxy publish the same request: Redis keeps one, others get one.

    The engine that served it takes it from nobody, even if Redis took the other's.
    """
    store = open_store(redis_server.url)
    a, b = engine(redis_server.url, "A"), engine(redis_server.url, "B")
    proxy = engine(redis_server.url, "proxy")
    for made in (a, b, proxy):
        wait_until(made.journal.warmed_up.is_set)
    with closing(store.client):
        a.journal.publish(record(1, origin="A"))
        assert a.journal.flush(10)
        proxy.journal.publish(record(1, origin="proxy"))
        proxy.journal.publish(record(2, origin="proxy"))
        assert proxy.journal.flush(10)
        a.journal.publish(record(2, origin="A"))
        a.journal.publish(record(3, origin="A"))
        wait_until(lambda: b.ids() == ["request-1", "request-2", "request-3"])
        wait_until(lambda: a.journal.stats()["skipped_duplicate"] == 1)
        assert a.got == []
        assert store.tenant_sizes("a").num_records == 3
    assert a.journal.stats()["refused_duplicate"] == 1
    assert proxy.journal.stats()["refused_duplicate"] == 1


def test_a_failing_consumer_does_not_stop_the_reading(
    redis_server: RedisServer, engine: Callable[..., Engine]
) -> None:
    """A record that cannot be used is counted; the next one is delivered."""
    a = engine(redis_server.url, "A")
    got: list[str] = []

    def consume(arrived: SequenceRecord) -> None:
        if arrived.request_id == "request-1":
            raise ValueError("unusable")
        got.append(arrived.request_id)

    b = Journal(redis_server.url, MODEL, origin="B", on_record=consume)
    b.start()
    try:
        for number in (1, 2):
            a.journal.publish(record(number))
        wait_until(lambda: got == ["request-2"])
        assert b.stats()["delivery_failures"] == 1
    finally:
        b.close()


def test_tls_and_acl_users_work_and_wrong_passwords_are_named(
    start_redis: Callable[..., RedisServer], engine: Callable[..., Engine], tmp_path: Path
) -> None:
    """Over TLS with a user of its own the journal works.

    A wrong password is refused at once, without being shown.
    """
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-keyout", str(key), "-out", str(certificate), "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    plain = start_redis(
        *("--tls-port", "0", "--tls-cert-file", str(certificate), "--tls-key-file", str(key)),
        *("--tls-ca-cert-file", str(certificate), "--tls-auth-clients", "no"),
        *("--user", "pace", "on", ">right", "~paceline:*", "+@all"),
    )
    from paceline.processes import free_port

    tls_port = free_port()
    plain.client().config_set("tls-port", tls_port)
    at = f"127.0.0.1:{tls_port}?ssl_ca_certs={certificate}"
    a, b = engine(f"rediss://pace:right@{at}", "A"), engine(f"rediss://pace:right@{at}", "B")
    a.journal.publish(record(1))
    wait_until(lambda: len(b.got) == 1)
    with pytest.raises(JournalError, match="user and password") as refused:
        engine(f"rediss://pace:wrong@{at}", "C")
    assert "wrong" not in str(refused.value)


def test_bad_urls_and_limits_are_named() -> None:
    """What cannot be a Redis URL, or a bound of nothing, is refused with the fix."""
    with pytest.raises(JournalError, match="redis://HOST:PORT"):
        Engine("http://somewhere", "A")
    with pytest.raises(JournalError, match="at least 1"):
        Engine("redis://h", "A", queue_records=0)
    assert redact_url("redis://u:secret@h:1/0") == "redis://u:***@h:1/0"
    assert redact_url("redis://h:1") == "redis://h:1"


def test_embedded_store_keeps_its_data_and_is_shared(
    tmp_path: Path, engine: Callable[..., Engine]
) -> None:
    """What is written is there after a stop and a start.

    A second opener joins and does not stop the first's server.
    """
    folder = tmp_path / "s"
    with EmbeddedStore(folder) as store:
        a = engine(store.url, "A")
        a.journal.publish(record(1))
        assert a.journal.flush(10)
        with EmbeddedStore(folder) as joined:
            assert joined.url == store.url
        b = engine(store.url, "B")
        wait_until(lambda: b.ids() == ["request-1"])
    with EmbeddedStore(folder) as store:
        c = engine(store.url, "C")
        wait_until(lambda: c.ids() == ["request-1"])


def test_embedded_store_names_a_path_that_is_too_long(tmp_path: Path) -> None:
    """A folder whose socket path the system cannot take is refused with the limit."""
    with pytest.raises(ConfigError, match="at most 107"):
        EmbeddedStore(tmp_path / ("x" * 120))
