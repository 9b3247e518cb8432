"""Whose kept answers are, in a real Redis: tenants apart, bounded, forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing

import msgspec
import pytest

from paceline.caches.answer_store import AnswerRecord, AnswerStore, forget_answers
from paceline.caches.governance import MemoryGovernor
from paceline.caches.journal_client import Client, RedisAddress
from paceline.caches.keys import AnswerKeys
from paceline.errors import RecordError
from redis_server import RedisServer

pytestmark = pytest.mark.redis


@asynccontextmanager
async def opened(server: RedisServer, **settings: int) -> AsyncIterator[AnswerStore]:
    client = await RedisAddress(server.url).connect_async(socket_seconds=5.0)
    try:
        yield AnswerStore(client, **settings)
    finally:
        await client.aclose()


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[Client]:
    with closing(RedisAddress(redis_server.url).connect()) as client:
        yield client


def record(session: str = "s", engine: str = "e") -> AnswerRecord:
    return AnswerRecord(engine=engine, session=session, side_channel="padded")


def test_a_tenant_finds_its_own_answers_alone(redis_server: RedisServer) -> None:
    """By id, as they were kept; whatever its name is made of."""

    async def check() -> None:
        async with opened(redis_server) as store:
            for tenant in ("a", "a}:records", "b"):
                await store.keep(tenant, "resp_1", record(engine=tenant))
            await store.keep("a", "resp_2", record("t"))
            for tenant in ("a", "a}:records", "b"):
                assert await store.find(tenant, "resp_1") == record(engine=tenant)
            assert await store.find("a", "resp_2") == record("t")
            assert await store.find("b", "resp_2") is None
            assert await store.find("c", "resp_1") is None

    asyncio.run(check())


def test_the_one_that_was_used_longest_ago_makes_room(
    redis_server: RedisServer, client: Client
) -> None:
    """Reading is using; hash and times stay of one size."""

    async def check() -> None:
        async with opened(redis_server, max_answers=3) as store:
            for number in range(3):
                await store.keep("a", str(number), record())
                await asyncio.sleep(0.002)  # times are in milliseconds
            assert await store.find("a", "0") == record()
            await asyncio.sleep(0.002)
            await store.keep("a", "3", record())
            kept = [name for name in "0123" if await store.find("a", name) is not None]
            assert kept == ["0", "2", "3"]

    asyncio.run(check())
    keys = AnswerKeys("a")
    assert client.hlen(keys.records) == client.zcard(keys.times) == 3


def test_what_is_too_old_is_not_found_and_goes(redis_server: RedisServer, client: Client) -> None:
    """Beyond the time to live, also where newer ones keep the keys alive."""
    keys = AnswerKeys("a")

    async def check() -> None:
        async with opened(redis_server, ttl_seconds=100) as store:
            await store.keep("a", "old", record())
            client.zincrby(keys.times, -100_001, "old")
            assert await store.find("a", "old") is None
            await store.keep("a", "new", record())
            assert client.hkeys(keys.records) == [b"new"]
            assert client.zrange(keys.times, 0, -1) == [b"new"]

    asyncio.run(check())
    assert all(0 < client.ttl(key) <= 100 for key in keys.all())


def test_forgetting_reaches_them(redis_server: RedisServer, client: Client) -> None:
    """A session's alone, or all of the tenant's; nobody else's."""

    async def keep() -> None:
        async with opened(redis_server) as store:
            for tenant in ("a", "b"):
                for session in ("s", "t"):
                    await store.keep(tenant, f"resp_{session}", record(session))

    asyncio.run(keep())
    client.hset(AnswerKeys("a").records, "resp_x", b"unreadable")
    assert forget_answers(client, "a", "s") == 2  # the unreadable one too
    assert client.hkeys(AnswerKeys("a").records) == [b"resp_t"]
    assert client.zrange(AnswerKeys("a").times, 0, -1) == [b"resp_t"]
    MemoryGovernor(client).forget(tenant="a")
    assert client.exists(*AnswerKeys("a").all()) == 0
    assert client.hlen(AnswerKeys("b").records) == 2


def test_a_record_of_a_newer_schema_is_refused() -> None:
    """And so is what is none."""
    newer = msgspec.structs.replace(record(), version=2)
    for data in (msgspec.json.encode(newer), b"{}", b"\xff", b'{"engine": "e"}'):
        with pytest.raises(RecordError):
            AnswerRecord.decode(data)
    assert AnswerRecord.decode(msgspec.json.encode(record())) == record()
