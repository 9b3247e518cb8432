"""Changes of a group's drafter as Lua scripts: each is atomic, on keys of one slot.

All take the keys of `DrafterKeys.all`: state, versions, states, claims, live, groups. What a
version is never changes; which state it is in lies beside it. The field ``history`` of the state
holds the versions that have been current, the last one being it, without those that were taken
back: so what to fall back upon is always known.
"""

from __future__ import annotations

from typing import Final

_COMMON: Final = """
local function field(name) return redis.call('HGET', KEYS[1], name) or '0' end
local function changed() redis.call('HINCRBY', KEYS[1], 'generation', 1) end
local function seconds() return tonumber(redis.call('TIME')[1]) end
local function state_of(version)
  local held = redis.call('HGET', KEYS[3], version)
  return held and string.match(held, '^[^:]*') or ''
end
local function put(version, state, reason)
  redis.call('HSET', KEYS[3], version, state .. ':' .. reason)
end
local function history_without(version)
  local kept = {}
  for each in string.gmatch(redis.call('HGET', KEYS[1], 'history') or '', '%d+') do
    if each ~= version then kept[#kept + 1] = each end
  end
  return kept
end
local function put_history(kept)
  redis.call('HSET', KEYS[1], 'history', table.concat(kept, ','),
             'current', kept[#kept] or '0', 'last_good', kept[#kept - 1] or '0')
end
local function end_canary()
  redis.call('HDEL', KEYS[1], 'canary', 'canary_replica', 'canary_seen')
end
local function free_canary(reason)
  local version = field('canary')
  if version ~= '0' then
    put(version, 'candidate', reason)
    end_canary()
  end
end
local function free_quiet_canary(longest)
  if field('canary') ~= '0' and seconds() - tonumber(field('canary_seen')) > tonumber(longest) then
    free_canary('its replica ' .. field('canary_replica') .. ' has gone quiet')
    changed()
  end
end
local function make_current(version, reason)
  local old, kept = field('current'), history_without(version)
  if old ~= '0' and old ~= version then
    put(old, 'retired', 'version ' .. version .. ' took its place')
  end
  kept[#kept + 1] = version
  put_history(kept)
  put(version, 'current', reason)
end
"""

STATE: Final = (
    _COMMON
    + """
-- ARGV: seconds that a canary's replica may be quiet
-- Answers current, last good, canary, its replica, generation.
free_quiet_canary(ARGV[1])
local replica = redis.call('HGET', KEYS[1], 'canary_replica') or ''
return {field('current'), field('last_good'), field('canary'), replica, field('generation')}
"""
)

READ: Final = """
-- Answers pairs of every version: what it is, and its state.
local answer = {}
local all = redis.call('HGETALL', KEYS[2])
for i = 1, #all, 2 do
  answer[#answer + 1] = all[i + 1]
  answer[#answer + 1] = redis.call('HGET', KEYS[3], all[i]) or ''
end
return answer
"""

RESERVE: Final = """
-- ARGV: least number to give
-- Answers the number of a version whose files are going to be written; it is never given again.
local number = tonumber(redis.call('HGET', KEYS[1], 'last') or '0') + 1
if number < tonumber(ARGV[1]) then number = tonumber(ARGV[1]) end
redis.call('HSET', KEYS[1], 'last', number)
redis.call('HSET', KEYS[4], number, redis.call('TIME')[1])
return number
"""

RECORD: Final = (
    _COMMON
    + """
-- ARGV: version, what it is, its state, reason, group
-- Answers 1, or 0 if its claim has been swept away: its files are gone or about to be.
if (redis.call('HGET', KEYS[4], ARGV[1]) or '0') == '0' then return 0 end
redis.call('HDEL', KEYS[4], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
put(ARGV[1], ARGV[3], ARGV[4])
redis.call('SADD', KEYS[6], ARGV[5])
changed()
return 1
"""
)

BEGIN_CANARY: Final = (
    _COMMON
    + """
-- ARGV: version, replica, seconds that a canary's replica may be quiet
-- Answers 1 if the replica has the version as its canary now, else 0.
free_quiet_canary(ARGV[3])
if field('canary') == ARGV[1] and field('canary_replica') == ARGV[2] then
  redis.call('HSET', KEYS[1], 'canary_seen', seconds())
  return 1
end
if field('canary') ~= '0' or state_of(ARGV[1]) ~= 'candidate' then return 0 end
redis.call('HSET', KEYS[1], 'canary', ARGV[1], 'canary_replica', ARGV[2], 'canary_seen', seconds())
put(ARGV[1], 'canary', 'on ' .. ARGV[2])
changed()
return 1
"""
)

PROMOTE: Final = (
    _COMMON
    + """
-- ARGV: version, reason
-- Answers '' if the version is current now, else the state it is in, from which it cannot be.
local state = state_of(ARGV[1])
if state == 'current' then return '' end
if state ~= 'candidate' and state ~= 'canary' and state ~= 'retired' then
  return state == '' and 'unknown' or state
end
if state == 'canary' then end_canary()
else free_canary('version ' .. ARGV[1] .. ' became current meanwhile') end
make_current(ARGV[1], ARGV[2])
changed()
return ''
"""
)

ROLL_BACK: Final = (
    _COMMON
    + """
-- ARGV: version to take back ('' for the canary, else the current one), version to have instead
--   ('' for the last good one), reason
-- Answers the version, and '' if it is taken back now, else the state it is in; then of the other
-- one the state that forbids it ('' if it may).
local version, successor = ARGV[1], ARGV[2]
if version == '' then
  version = successor == '' and field('canary') or '0'
  if version == '0' then version = field('current') end
  if version == '0' then return {'0', 'none', ''} end
end
local state = state_of(version)
if successor ~= '' then
  if version ~= field('current') then return {version, state == '' and 'unknown' or state, ''} end
  local its = state_of(successor)
  if its ~= 'retired' then return {version, '', its == '' and 'unknown' or its} end
end
if state == 'rolled_back' then return {version, '', ''} end
if state == '' or state == 'rejected' then
  return {version, state == '' and 'unknown' or state, ''}
end
if state == 'canary' then end_canary() end
put(version, 'rolled_back', ARGV[3])
put_history(history_without(version))
if state == 'current' then
  free_canary('version ' .. version .. ', which it was compared with, was rolled back')
  local now = successor ~= '' and successor or field('current')
  if now ~= '0' then
    local kept = history_without(now)
    kept[#kept + 1] = now
    put_history(kept)
    put(now, 'current', 'version ' .. version .. ' was rolled back: ' .. ARGV[3])
  end
end
changed()
return {version, '', ''}
"""
)

REPORT: Final = """
-- ARGV: replica, its figures, Unix time before which figures are stale, most replicas, version
-- Keeps the claim of a canary whose replica this is.
redis.call('HSET', KEYS[5], ARGV[1], ARGV[2])
if redis.call('HGET', KEYS[1], 'canary_replica') == ARGV[1]
    and redis.call('HGET', KEYS[1], 'canary') == ARGV[5] then
  redis.call('HSET', KEYS[1], 'canary_seen', redis.call('TIME')[1])
end
local all, kept = redis.call('HGETALL', KEYS[5]), {}
for i = 1, #all, 2 do
  local readable, figures = pcall(cjson.decode, all[i + 1])
  local at = readable and type(figures) == 'table' and tonumber(figures['updated_at'])
  if at and at >= tonumber(ARGV[3]) then kept[#kept + 1] = {at, all[i]}
  else redis.call('HDEL', KEYS[5], all[i]) end
end
table.sort(kept, function(a, b) return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2]) end)
for i = 1, #kept - tonumber(ARGV[4]) do redis.call('HDEL', KEYS[5], kept[i][2]) end
return 1
"""

REMOVE: Final = (
    _COMMON
    + """
-- ARGV: versions
-- Takes away the records of those that are neither in use nor to be; answers which. Their files are
-- claimed as to be removed.
local removed = {}
for _, version in ipairs(ARGV) do
  local state = state_of(version)
  local is_old = state == 'retired' or state == 'rejected' or state == 'rolled_back'
  if is_old and version ~= field('last_good') then
    redis.call('HDEL', KEYS[2], version)
    redis.call('HDEL', KEYS[3], version)
    redis.call('HSET', KEYS[4], version, 0)
    put_history(history_without(version))
    removed[#removed + 1] = version
  end
end
return removed
"""
)

RETIRE: Final = (
    _COMMON
    + """
-- ARGV: group
-- Takes away all that is recorded of a group's drafter but its numbers, which are never given
-- again. What is being published is refused. Answers the versions; their files are claimed as to be
-- removed.
local versions = redis.call('HKEYS', KEYS[3])
for _, version in ipairs(redis.call('HKEYS', KEYS[4])) do versions[#versions + 1] = version end
for _, version in ipairs(versions) do redis.call('HSET', KEYS[4], version, 0) end
redis.call('DEL', KEYS[2], KEYS[3], KEYS[5])
end_canary()
put_history({})
redis.call('SREM', KEYS[6], ARGV[1])
changed()
return versions
"""
)

SWEEP: Final = (
    _COMMON
    + """
-- ARGV: seconds that writing a version's files may take
-- Answers versions that were never recorded in that time, or were removed: their files can go, and
-- they can be recorded no more.
local claims, stale = redis.call('HGETALL', KEYS[4]), {}
for i = 1, #claims, 2 do
  if seconds() - tonumber(claims[i + 1]) > tonumber(ARGV[1]) then
    redis.call('HSET', KEYS[4], claims[i], 0)
    stale[#stale + 1] = claims[i]
  end
end
return stale
"""
)
