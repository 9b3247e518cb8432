"""The journal's changes as Lua scripts: each is atomic, and keeps the sizes it accounts for exact.

Every script touches keys of one model, hence of one slot. Where two writers meet (two sealers, an
evictor and one who forgets) the script that comes second finds its premise gone and answers 0.
"""

from __future__ import annotations

from typing import Final

APPEND: Final = """
-- KEYS: bell, shelves, forgotten; then of each record: tail, shelf, tenant, owned, seen, source
-- ARGV: length of the bell;
--   then of each record: shelf's name, record, number of tokens, begun at, origin, source id,
--   the tenant's retention in ms from now on (0: for ever, -1: as it was), seconds to remember the
--   request for (0: not at all), 4 subjects
-- Answers of each record: 1 recorded, 0 known already, -1 forgotten, -2 moved by another; then
--   tokens and bytes of the tail, tokens and bytes of the shelf, tokens and bytes of the tenant.
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
local answers, rung, names = {}, {}, {}
local key, arg = 4, 2
while key <= #KEYS do
  local tail, shelf, tenant, owned, seen, source =
    KEYS[key], KEYS[key + 1], KEYS[key + 2], KEYS[key + 3], KEYS[key + 4], KEYS[key + 5]
  local name, record, tokens, begun, origin, source_id, retention, remember =
    ARGV[arg], ARGV[arg + 1], ARGV[arg + 2], tonumber(ARGV[arg + 3]), ARGV[arg + 4],
    ARGV[arg + 5], tonumber(ARGV[arg + 6]), tonumber(ARGV[arg + 7])
  local status = 1
  if source_id ~= '' and redis.call('XDEL', source, source_id) == 0 then status = -2 end
  if status == 1 then
    local cuts = redis.call('HMGET', KEYS[3], ARGV[arg + 8], ARGV[arg + 9], ARGV[arg + 10],
                            ARGV[arg + 11])
    for i = 1, 4 do
      if cuts[i] and tonumber(cuts[i]) >= begun then status = -1 end
    end
  end
  if status == 1 and remember > 0 and not redis.call('SET', seen, '', 'NX', 'EX', remember) then
    status = 0
  end
  if status == 1 then
    local id = redis.call('XADD', tail, '*', 'r', record, 'n', tokens, 'o', origin)
    local ring = rung[name]
    if not ring then
      ring = {origin = origin, after = redis.call('HGET', shelf, 'last') or '0-0', records = 0}
      rung[name] = ring
      names[#names + 1] = name
    end
    if ring.origin ~= origin then ring.origin = '' end
    ring.records, ring.last = ring.records + 1, id
    redis.call('HSET', shelf, 'last', id)
    -- An epoch is never used twice, not even by a shelf that was emptied and began anew.
    redis.call('HSETNX', shelf, 'epoch', ms * 1000)
    redis.call('HINCRBY', shelf, 'tail_records', 1)
    redis.call('HINCRBY', shelf, 'records', 1)
    redis.call('HINCRBY', tenant, 'records', 1)
    local size = #record
    local answer = {1,
      redis.call('HINCRBY', shelf, 'tail_tokens', tokens),
      redis.call('HINCRBY', shelf, 'tail_bytes', size),
      redis.call('HINCRBY', shelf, 'tokens', tokens),
      redis.call('HINCRBY', shelf, 'bytes', size),
      redis.call('HINCRBY', tenant, 'tokens', tokens),
      redis.call('HINCRBY', tenant, 'bytes', size)}
    if retention < 0 then retention = tonumber(redis.call('HGET', tenant, 'retention') or '0') end
    if retention > 0 then
      redis.call('HSET', tenant, 'retention', retention)
      redis.call('PEXPIRE', tail, retention)
    else
      redis.call('HDEL', tenant, 'retention')
      redis.call('PERSIST', tail)
    end
    redis.call('ZADD', KEYS[2], ms, name)
    redis.call('SADD', owned, name)
    answers[#answers + 1] = answer
  else
    answers[#answers + 1] = {status}
  end
  key, arg = key + 6, arg + 12
end
for _, name in ipairs(names) do
  local ring = rung[name]
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 's', name, 'o', ring.origin,
             'after', ring.after, 'last', ring.last, 'n', ring.records)
end
return answers
"""

SEAL: Final = """
-- KEYS: lease, tail, shelf, tenant, index, segment
-- ARGV: holder of the lease, epoch that the records were read in, id after the last of them,
--   number of records, their tokens, their bytes, block, index entry, its score, TTL in ms or 0
-- Answers 1 if sealed, 0 if the lease was lost or the tail is not what was read.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
if redis.call('HGET', KEYS[3], 'epoch') ~= ARGV[2] then return 0 end
local records, tokens, bytes = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
if redis.call('XLEN', KEYS[2]) < records then return 0 end
redis.call('XTRIM', KEYS[2], 'MINID', ARGV[3])
if tonumber(ARGV[10]) > 0 then redis.call('SET', KEYS[6], ARGV[7], 'PX', ARGV[10])
else redis.call('SET', KEYS[6], ARGV[7]) end
redis.call('ZADD', KEYS[5], ARGV[9], ARGV[8])
redis.call('HINCRBY', KEYS[3], 'tail_records', -records)
redis.call('HINCRBY', KEYS[3], 'tail_tokens', -tokens)
redis.call('HINCRBY', KEYS[3], 'tail_bytes', -bytes)
redis.call('HINCRBY', KEYS[3], 'bytes', #ARGV[7] - bytes)
redis.call('HINCRBY', KEYS[3], 'epoch', 1)
redis.call('HINCRBY', KEYS[4], 'bytes', #ARGV[7] - bytes)
return 1
"""

REPLACE: Final = """
-- KEYS: index, segment, shelf, tenant
-- ARGV: index entry, its records, tokens, bytes; new index entry ('' for none), its score, block,
--   records, tokens
-- Answers 1 if the segment was replaced or removed, 0 if it was not there as described.
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then return 0 end
local records, tokens, bytes = -tonumber(ARGV[2]), -tonumber(ARGV[3]), -tonumber(ARGV[4])
if ARGV[5] == '' then
  redis.call('DEL', KEYS[2])
else
  redis.call('SET', KEYS[2], ARGV[7], 'KEEPTTL')
  redis.call('ZADD', KEYS[1], ARGV[6], ARGV[5])
  records, tokens, bytes = records + ARGV[8], tokens + ARGV[9], bytes + #ARGV[7]
end
for i = 3, 4 do
  redis.call('HINCRBY', KEYS[i], 'records', records)
  redis.call('HINCRBY', KEYS[i], 'tokens', tokens)
  redis.call('HINCRBY', KEYS[i], 'bytes', bytes)
end
return 1
"""

CUT: Final = """
-- KEYS: tail, shelf, tenant
-- ARGV: ids of entries to remove
-- Answers records, tokens and bytes removed; what another removed before is not counted.
local records, tokens, bytes = 0, 0, 0
for i = 1, #ARGV do
  local entry = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])[1]
  if entry then
    redis.call('XDEL', KEYS[1], ARGV[i])
    records = records + 1
    local fields = entry[2]
    for f = 1, #fields, 2 do
      if fields[f] == 'n' then tokens = tokens + tonumber(fields[f + 1]) end
      if fields[f] == 'r' then bytes = bytes + #fields[f + 1] end
    end
  end
end
if records > 0 then
  redis.call('HINCRBY', KEYS[2], 'epoch', 1)
  redis.call('HINCRBY', KEYS[2], 'tail_records', -records)
  redis.call('HINCRBY', KEYS[2], 'tail_tokens', -tokens)
  redis.call('HINCRBY', KEYS[2], 'tail_bytes', -bytes)
  for i = 2, 3 do
    redis.call('HINCRBY', KEYS[i], 'records', -records)
    redis.call('HINCRBY', KEYS[i], 'tokens', -tokens)
    redis.call('HINCRBY', KEYS[i], 'bytes', -bytes)
  end
end
return {records, tokens, bytes}
"""

SETTLE: Final = """
-- KEYS: tail, shelf, tenant, index, shelves, owned
-- ARGV: shelf's name
-- Takes an expired tail off the accounts, and an empty shelf's keys away. Answers 1 if it did
-- either.
local done = 0
if redis.call('XLEN', KEYS[1]) == 0 then
  local held = redis.call('HMGET', KEYS[2], 'tail_records', 'tail_tokens', 'tail_bytes')
  if tonumber(held[1] or '0') > 0 then
    done = 1
    local names = {'records', 'tokens', 'bytes'}
    for i = 1, 3 do
      redis.call('HINCRBY', KEYS[2], 'tail_' .. names[i], -held[i])
      redis.call('HINCRBY', KEYS[2], names[i], -held[i])
      redis.call('HINCRBY', KEYS[3], names[i], -held[i])
    end
    redis.call('HINCRBY', KEYS[2], 'epoch', 1)
  end
  if redis.call('EXISTS', KEYS[4]) == 0 then
    done = 1
    redis.call('DEL', KEYS[1], KEYS[2])
    redis.call('ZREM', KEYS[5], ARGV[1])
    redis.call('SREM', KEYS[6], ARGV[1])
    if redis.call('EXISTS', KEYS[6]) == 0 then redis.call('DEL', KEYS[3]) end
  end
end
return done
"""

ENTOMB: Final = """
-- KEYS: forgotten, control
-- ARGV: subject, time in seconds, control's length
-- Answers the time that the tombstone reaches to: never earlier than one of its subject before it.
local before = ARGV[2]
local old = redis.call('HGET', KEYS[1], ARGV[1])
if old and tonumber(old) > tonumber(before) then before = old end
redis.call('HSET', KEYS[1], ARGV[1], before)
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'subject', ARGV[1], 'before', before)
return before
"""

WITHER: Final = """
-- KEYS: forgotten
-- ARGV: time in seconds
-- Removes tombstones that reach to an earlier time; answers how many.
local all = redis.call('HGETALL', KEYS[1])
local removed = 0
for i = 1, #all, 2 do
  if tonumber(all[i + 1]) < tonumber(ARGV[1]) then
    removed = removed + redis.call('HDEL', KEYS[1], all[i])
  end
end
return removed
"""

RETIRE: Final = """
-- KEYS: stream of layout 1, scopes of layout 1
-- ARGV: scope
-- Removes an emptied stream of layout 1; answers 1 if it did.
if redis.call('XLEN', KEYS[1]) > 0 then return 0 end
redis.call('DEL', KEYS[1])
redis.call('SREM', KEYS[2], ARGV[1])
return 1
"""

COUNT: Final = """
-- KEYS: phrases, workloads, forgotten
-- ARGV: workload, logarithm of the weight of one occurrence now,
--   most phrases, TTL in ms, begun at, 4 subjects; then each phrase and its count
-- Answers 1, or 0 if what is counted has been forgotten.
local cuts = redis.call('HMGET', KEYS[3], ARGV[6], ARGV[7], ARGV[8], ARGV[9])
for i = 1, 4 do
  if cuts[i] and tonumber(cuts[i]) >= tonumber(ARGV[5]) then return 0 end
end
local log2 = math.log(2)
for i = 10, #ARGV, 2 do
  local score = ARGV[2] + math.log(ARGV[i + 1]) / log2
  local old = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[i]) or '-inf')
  if old > -math.huge then
    local high, low = math.max(score, old), math.min(score, old)
    score = high + math.log(1 + 2 ^ (low - high)) / log2
  end
  redis.call('ZADD', KEYS[1], string.format('%.17g', score), ARGV[i])
end
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -(tonumber(ARGV[3]) + 1))
local now = redis.call('TIME')
redis.call('ZADD', KEYS[2], now[1] * 1000 + math.floor(now[2] / 1000), ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 1
"""

KEEP_POLICY: Final = """
-- KEYS: policy, policies, forgotten
-- ARGV: kind, replica, state, TTL in ms; then of each key in the state: begun at, 2 subjects
-- Answers 1, or 0 if something in the state has been forgotten.
for i = 5, #ARGV, 3 do
  for j = 1, 2 do
    if ARGV[i + j] ~= '' then
      local before = redis.call('HGET', KEYS[3], ARGV[i + j])
      if before and tonumber(before) >= tonumber(ARGV[i]) then return 0 end
    end
  end
end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 1
"""

SWAP_POLICY: Final = """
-- KEYS: policy
-- ARGV: replica, the state that is there, what takes its place ('' for none)
-- Answers 1, or 0 if another state is there by now.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
if ARGV[3] == '' then redis.call('HDEL', KEYS[1], ARGV[1])
else redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end
return 1
"""
