"""Changes of a scope's kinds of work as Lua scripts: each is atomic, on keys of one slot.

All take the keys of `KindKeys.all`. A change names the generation and the version that it was made
for: of two proxies that meet, the second is refused, reads what the first did and decides anew. A
generation is never used twice, so that nothing of what was forgotten can be written back.
"""

from __future__ import annotations

from typing import Final

SYNC: Final = """
-- ARGV: generation and version known, digest of a text ('' for none)
-- Answers generation, version, time of forgetting, name of the text's kind, whether what follows is
-- everything; then triples: name, cluster ('' if it is no more), name it goes by ('' for none).
local state = redis.call('HMGET', KEYS[1], 'generation', 'version', 'forgotten')
local generation, version = state[1] or '', state[2] or '0'
local known = ''
if ARGV[3] ~= '' then known = redis.call('HGET', KEYS[5], ARGV[3]) or '' end
local whole = generation ~= ARGV[1]
local answer = {generation, version, state[3] or '0', known, whole and 1 or 0}
local names
if whole then
  names = redis.call('HKEYS', KEYS[2])
  for _, name in ipairs(redis.call('HKEYS', KEYS[4])) do names[#names + 1] = name end
else
  names = redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. ARGV[2], '+inf')
end
for _, name in ipairs(names) do
  answer[#answer + 1] = name
  answer[#answer + 1] = redis.call('HGET', KEYS[2], name) or ''
  answer[#answer + 1] = redis.call('HGET', KEYS[4], name) or ''
end
return answer
"""

COMMIT: Final = """
-- ARGV: generation and version that the change was made for, TTL in ms, digest of the text ('' for
--   none), its kind, most texts, most aliases, number of clusters;
--   then each: name, cluster; then of those that are no more: name, name it goes by ('' for none)
-- Answers 1, generation and version; or 0 if the scope has changed since: nothing has happened.
local state = redis.call('HMGET', KEYS[1], 'generation', 'version')
if (state[1] or '') ~= ARGV[1] or (state[2] or '0') ~= ARGV[2] then return {0} end
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
local generation = ARGV[1]
if generation == '' then
  generation = now[1] .. string.format('%06d', now[2])
  redis.call('HSET', KEYS[1], 'generation', generation)
end
local version = redis.call('HINCRBY', KEYS[1], 'version', 1)
local last = 8 + 2 * tonumber(ARGV[8])
for i = last + 1, #ARGV, 2 do
  local name, successor = ARGV[i], ARGV[i + 1]
  local requests = tonumber(redis.call('HGET', KEYS[7], name) or '0')
  redis.call('HDEL', KEYS[2], name)
  redis.call('HDEL', KEYS[7], name)
  redis.call('ZREM', KEYS[8], name)
  redis.call('ZADD', KEYS[3], version, name)
  local aliases = redis.call('HGETALL', KEYS[4])
  for j = 1, #aliases, 2 do
    if aliases[j + 1] == name then
      if successor == '' then redis.call('HDEL', KEYS[4], aliases[j])
      else redis.call('HSET', KEYS[4], aliases[j], successor) end
      redis.call('ZADD', KEYS[3], version, aliases[j])
    end
  end
  if successor ~= '' then
    redis.call('HSET', KEYS[4], name, successor)
    if requests > 0 then redis.call('HINCRBY', KEYS[7], successor, requests) end
  end
end
for i = 9, last, 2 do
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
  redis.call('HDEL', KEYS[4], ARGV[i])
  redis.call('ZADD', KEYS[3], version, ARGV[i])
  redis.call('ZADD', KEYS[8], ms, ARGV[i])
end
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[5], ARGV[4], ARGV[5])
  redis.call('ZADD', KEYS[6], ms, ARGV[4])
  local old = redis.call('ZRANGE', KEYS[6], 0, -(tonumber(ARGV[6]) + 1))
  for _, digest in ipairs(old) do
    redis.call('HDEL', KEYS[5], digest)
    redis.call('ZREM', KEYS[6], digest)
  end
end
local surplus = redis.call('HLEN', KEYS[4]) - tonumber(ARGV[7])
if surplus > 0 then
  for _, name in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
    if surplus <= 0 then break end
    if redis.call('HDEL', KEYS[4], name) == 1 then
      surplus = surplus - 1
      redis.call('ZADD', KEYS[3], version, name)
    end
  end
end
-- names that are no more are remembered as changed for a while only: proxies look every second
local gone = redis.call('ZCARD', KEYS[3]) - 8 * tonumber(ARGV[7])
if gone > 0 then
  for _, name in ipairs(redis.call('ZRANGE', KEYS[3], 0, gone - 1)) do
    if redis.call('HEXISTS', KEYS[2], name) == 0 and redis.call('HEXISTS', KEYS[4], name) == 0 then
      redis.call('ZREM', KEYS[3], name)
    end
  end
end
for i = 1, 8 do redis.call('PEXPIRE', KEYS[i], ARGV[3]) end
return {1, generation, tostring(version)}
"""

COUNT: Final = """
-- ARGV: generation, TTL in ms; then name and requests
-- Counts requests of kinds that are there, merged ones as what they go by. Answers 1, or 0 if the
-- generation has passed.
if (redis.call('HGET', KEYS[1], 'generation') or '') ~= ARGV[1] then return 0 end
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
for i = 3, #ARGV, 2 do
  local name = redis.call('HGET', KEYS[4], ARGV[i]) or ARGV[i]
  if redis.call('HEXISTS', KEYS[2], name) == 1 then
    redis.call('HINCRBY', KEYS[7], name, ARGV[i + 1])
    redis.call('ZADD', KEYS[8], ms, name)
  end
end
for i = 1, 8 do redis.call('PEXPIRE', KEYS[i], ARGV[2]) end
return 1
"""

FORGET: Final = """
-- ARGV: TTL in ms
-- Drops everything and begins a generation of its own: what was decided before is refused.
-- Answers how many kinds there were.
local found = redis.call('HLEN', KEYS[2])
for i = 1, 8 do redis.call('DEL', KEYS[i]) end
local now = redis.call('TIME')
redis.call('HSET', KEYS[1], 'generation', now[1] .. string.format('%06d', now[2]),
           'version', 0, 'forgotten', now[1] .. '.' .. string.format('%06d', now[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return found
"""
