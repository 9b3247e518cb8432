"""Whose the answers are that engines keep, in Redis: which engine has them, by tenant and id.

Two keys a tenant: a hash of records and a sorted set of their times, so that both their number and
their age are bounded, and forgetting a tenant is one removal.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from paceline.caches.journal_client import Client
from paceline.caches.keys import AnswerKeys
from paceline.errors import RecordError

TTL_SECONDS: Final = 7 * 86_400
"""An answer that nobody has asked for or gone on from for so long is no longer known."""
MAX_ANSWERS: Final = 16_384
"""Of a tenant, about 250 bytes each; the one that was used longest ago goes first."""
VERSION: Final = 1

KEEP: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], now, ARGV[1])
local old = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[3] * 1000, 'LIMIT', 0, 64)
local over = redis.call('ZCARD', KEYS[2]) - #old - ARGV[4]
if over > 0 then
  for _, name in ipairs(redis.call('ZRANGE', KEYS[2], #old, #old + math.min(over, 64) - 1)) do
    old[#old + 1] = name
  end
end
for _, name in ipairs(old) do
  redis.call('HDEL', KEYS[1], name)
  redis.call('ZREM', KEYS[2], name)
end
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[3])
return #old
"""
"""Keys: records, times. Arguments: id, record, time to live in seconds, most records."""

FIND: Final = """
local held = redis.call('HGET', KEYS[1], ARGV[1])
if not held then return false end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if tonumber(redis.call('ZSCORE', KEYS[2], ARGV[1])) <= now - ARGV[2] * 1000 then return false end
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return held
"""
"""Keys: records, times. Arguments: id, time to live in seconds."""


class AnswerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that an engine keeps.

    Attributes:
        engine: name of the engine, as the proxies' configurations have it.
        session: of its conversation, "" if nothing told.
        side_channel: shape in which it is to be told.
        version: of this schema.
    """

    engine: str
    session: str
    side_channel: Literal["open", "aggregate", "padded"]
    version: int = VERSION

    @classmethod
    def decode(cls, data: bytes) -> AnswerRecord:
        """The record of some bytes.

        Raises:
            RecordError: they are none, or of a newer schema.
        """
        try:
            record = _records.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RecordError(f"a kept answer's record cannot be read: {error}") from error
        if record.version > VERSION:
            raise RecordError(f"a kept answer's record is of schema {record.version}; update")
        return record


class AnswerStore:
    """Records of kept answers.

    Args:
        client: of the Redis, for an event loop.
        ttl_seconds: how long one that is not used is known.
        max_answers: most of a tenant.
    """

    def __init__(
        self, client: Client, *, ttl_seconds: int = TTL_SECONDS, max_answers: int = MAX_ANSWERS
    ) -> None:
        self._client = client
        self._ttl_seconds = ttl_seconds
        self._max_answers = max_answers

    async def keep(self, tenant: str, answer_id: str, record: AnswerRecord) -> None:
        """Remember an answer; one round trip.

        Raises:
            RedisError, RedisClusterException, OSError: Redis did not take it.
        """
        limits = (self._ttl_seconds, self._max_answers)
        await self._evaluate(KEEP, tenant, answer_id, msgspec.json.encode(record), *limits)

    async def find(self, tenant: str, answer_id: str) -> AnswerRecord | None:
        """A tenant's own answer, None if it has none of that id; one round trip.

        Raises:
            RecordError: what is held cannot be read.
            RedisError, RedisClusterException, OSError: Redis did not answer.
        """
        held = await self._evaluate(FIND, tenant, answer_id, self._ttl_seconds)
        return None if held is None else AnswerRecord.decode(held)

    async def _evaluate(self, script: str, tenant: str, *arguments: Any) -> Any:
        keys = AnswerKeys(tenant).all()
        return await self._client.eval(script, len(keys), *keys, *arguments)


def forget_answers(client: Client, tenant: str, session: str = "") -> int:
    """Forget whose a tenant's kept answers are, or those of one session; returns how many.

    O(the tenant's answers). Raises as `AnswerStore`.
    """
    keys = AnswerKeys(tenant)
    if not session:
        num_records = int(client.hlen(keys.records))
        client.delete(*keys.all())
        return num_records
    doomed = []
    for name, data in client.hscan_iter(keys.records, count=1000):
        try:
            is_other = AnswerRecord.decode(data).session != session
        except RecordError:
            is_other = False  # whoever's it is, nobody can use it
        if not is_other:
            doomed.append(name)
    if doomed:
        client.hdel(keys.records, *doomed)
        client.zrem(keys.times, *doomed)
    return len(doomed)


_records: Final = msgspec.json.Decoder(AnswerRecord)
