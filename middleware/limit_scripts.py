"""The limits' windows and places in Redis, as Lua scripts: one a decision.

They keep `paceline.policies.limits.SlidingWindow`, paced, number for number. A window is a hash:
``h`` and ``t``, numbers of its oldest and newest entry; ``s``, its total; ``d``, its debt; each
entry under its number, as ``TIME AMOUNT``; ``c``, its credit times its length, refilled until
``a``. Places are a sorted set of requests by the time their lease ends. Times are milliseconds of
Redis' own clock. All keys of a call are of one tenant, hence of one slot.
"""

from __future__ import annotations

from typing import Final

_WINDOW: Final = """
local function now_of(given)
  if given ~= '' then return tonumber(given) end
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function text(number) return string.format('%.0f', number) end

local function read(w, number)
  local time, amount = string.match(redis.call('HGET', w.key, text(number)), '(%d+) (%d+)')
  return tonumber(time), tonumber(amount)
end

local function write(w, number, time, amount)
  redis.call('HSET', w.key, text(number), text(time) .. ' ' .. text(amount))
end

local function add(w, time, amount)
  w.s = w.s + amount
  if w.t >= w.h then
    local _, there = read(w, w.t)
    if there + amount <= w.part then
      write(w, w.t, time, there + amount)
      return
    end
  end
  w.t = w.t + 1
  write(w, w.t, time, amount)
end

-- The window at `key` with what has left it gone.
local function open(key, limit, length, now)
  local held = redis.call('HMGET', key, 'h', 't', 's', 'd', 'c', 'a')
  local w = {key = key, limit = limit, length = length, now = now, part = math.ceil(limit / 240),
    h = tonumber(held[1] or 1), t = tonumber(held[2] or 0), s = tonumber(held[3] or 0),
    d = tonumber(held[4] or 0), full = limit * length}
  local passed = math.min(now - tonumber(held[6] or 0), 2 * length)
  w.c = math.min(tonumber(held[5] or w.full) + passed * limit, w.full)
  while w.t >= w.h do
    local time, amount = read(w, w.h)
    if now - time < length then break end
    redis.call('HDEL', key, text(w.h))
    w.h = w.h + 1
    w.s = w.s - amount
    local paid = math.min(w.d, amount)
    if paid > 0 then
      w.d = w.d - paid
      add(w, time + length, paid)
    end
  end
  return w
end

local function close(w)
  redis.call('HSET', w.key, 'h', text(w.h), 't', text(w.t), 's', text(w.s), 'd', text(w.d),
    'c', text(w.c), 'a', text(w.now))
  redis.call('PEXPIRE', w.key, text(w.length * (2 + math.ceil(w.d / w.limit))))
end

local function space(w)
  if w.d > 0 then return 0 end
  return math.max(w.limit - w.s, 0)
end

local function room(w)
  return math.max(math.min(space(w), math.floor(w.c / w.length)), 0)
end

local function turned_away(w)
  if space(w) == 0 then
    w.c = math.min(w.c, math.max(math.floor(w.limit / 20), 1) * w.length)
  end
end

local function take(w, amount)
  local fits = math.min(amount, space(w))
  if fits > 0 or w.t < w.h then add(w, w.now, fits) end
  w.d = math.min(w.d + amount - fits, w.limit * 60)
  w.c = math.max(w.c - amount * w.length, -w.full)
  return w.t
end

local function give_back(w, place, amount)
  local cancelled = math.min(w.d, amount)
  w.d = w.d - cancelled
  if place < w.h then return end
  w.c = math.min(w.c + amount * w.length, w.full)
  amount = amount - cancelled
  while place <= w.t and amount > 0 do
    local time, there = read(w, place)
    local less = math.min(there, amount)
    write(w, place, time, there - less)
    w.s = w.s - less
    amount = amount - less
    place = place + 1
  end
end

-- When so much will have left the window, what is owed included.
local function left_at(w, amount)
  local cycles = math.floor((amount - 1) / w.s)
  local rest, number, time, held = amount - cycles * w.s, w.h, 0, 0
  while number <= w.t do
    time, held = read(w, number)
    rest = rest - held
    if rest <= 0 then break end
    number = number + 1
  end
  return time + (cycles + 1) * w.length
end

local function credit_after(w, credit)
  return math.ceil((credit - w.c) / w.limit)
end

local function reset(w)
  local ms = 0
  if w.s > 0 then
    local last
    if w.d > 0 then last = left_at(w, w.d) else last = read(w, w.t) end
    ms = last + w.length - w.now
  end
  return math.max(ms, credit_after(w, w.full))
end

local function wait(w)
  if room(w) > 0 then return 0 end
  local ms = 1
  if w.s > 0 and space(w) == 0 then ms = left_at(w, w.d + w.s - w.limit + 1) - w.now end
  return math.max(ms, credit_after(w, w.length), 1)
end
"""

ADMIT: Final = (
    _WINDOW
    + """
-- KEYS: of each bound: requests, tokens, places
-- ARGV: now in ms ('' for Redis' own), length of the window in ms, length of a lease in ms,
--   the request's id, its expected tokens; then of each bound: most requests, tokens, at a time
--   (0 for no limit)
-- Answers 1 if all admit, else 0; then of each bound, -1 where there is no limit: requests that
--   remain, ms until they are reset, ms to wait; the same of tokens; place of the tokens; requests
--   under way.
local now, length, lease = now_of(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local request, expected = ARGV[4], tonumber(ARGV[5])
local admitted, bounds = 1, {}
for i = 1, #KEYS / 3 do
  local arg = 5 + 3 * (i - 1)
  local b = {places = KEYS[3 * i], most = tonumber(ARGV[arg + 3]), active = -1}
  local requests, tokens = tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2])
  if requests > 0 then
    b.requests = open(KEYS[3 * i - 2], requests, length, now)
    if room(b.requests) < 1 then admitted = 0 end
  end
  if tokens > 0 then
    b.tokens = open(KEYS[3 * i - 1], tokens, length, now)
    if room(b.tokens) < 1 then admitted = 0 end
  end
  if b.most > 0 then
    redis.call('ZREMRANGEBYSCORE', b.places, '-inf', text(now))
    b.active = redis.call('ZCARD', b.places)
    if b.active >= b.most then admitted = 0 end
  end
  bounds[i] = b
end
local answer = {admitted}
local function say(w)
  local said = {-1, -1, -1}
  if w then said = {room(w), reset(w), wait(w)} end
  for i = 1, 3 do answer[#answer + 1] = said[i] end
end
for _, b in ipairs(bounds) do
  local place = -1
  if admitted == 1 then
    if b.requests then take(b.requests, 1) end
    if b.tokens then place = take(b.tokens, expected) end
    if b.most > 0 then
      redis.call('ZADD', b.places, text(now + lease), request)
      redis.call('PEXPIRE', b.places, text(lease * 2))
      b.active = b.active + 1
    end
  else
    if b.requests then turned_away(b.requests) end
    if b.tokens then turned_away(b.tokens) end
  end
  say(b.requests)
  say(b.tokens)
  answer[#answer + 1] = place
  answer[#answer + 1] = b.active
  if b.requests then close(b.requests) end
  if b.tokens then close(b.tokens) end
end
return answer
"""
)

ADOPT: Final = (
    _WINDOW
    + """
-- KEYS, ARGV: as of the script that admits, with the tokens charged so far
-- Counts a request that was let in elsewhere, whether or not there is room; answers the place of
-- its tokens for each bound.
local now, length, lease = now_of(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local answer = {}
for i = 1, #KEYS / 3 do
  local arg = 5 + 3 * (i - 1)
  local requests, tokens = tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2])
  answer[i] = -1
  if requests > 0 then
    local w = open(KEYS[3 * i - 2], requests, length, now)
    take(w, 1)
    close(w)
  end
  if tokens > 0 then
    local w = open(KEYS[3 * i - 1], tokens, length, now)
    answer[i] = take(w, tonumber(ARGV[5]))
    close(w)
  end
  if tonumber(ARGV[arg + 3]) > 0 then
    redis.call('ZADD', KEYS[3 * i], text(now + lease), ARGV[4])
    redis.call('PEXPIRE', KEYS[3 * i], text(lease * 2))
  end
end
return answer
"""
)

BOOK: Final = (
    _WINDOW
    + """
-- KEYS: of each bound: tokens, places
-- ARGV: now in ms ('' for Redis' own), length of the window in ms, length of a lease in ms,
--   the request's id, tokens to count more or less, 1 if it has ended; then of each bound: most
--   tokens, most at a time (0 for no limit), place of the tokens
local now, length, lease = now_of(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local request, amount, ended = ARGV[4], tonumber(ARGV[5]), ARGV[6] == '1'
for i = 1, #KEYS / 2 do
  local arg = 6 + 3 * (i - 1)
  local tokens, most, place = tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2]), ARGV[arg + 3]
  if tokens > 0 and amount ~= 0 then
    local w = open(KEYS[2 * i - 1], tokens, length, now)
    if amount > 0 then take(w, amount) else give_back(w, tonumber(place), -amount) end
    close(w)
  end
  if most > 0 and ended then
    redis.call('ZREM', KEYS[2 * i], request)
  elseif most > 0 then
    -- only a place that is still held: a renewal may come behind the end that it overlapped with
    redis.call('ZADD', KEYS[2 * i], 'XX', 'GT', text(now + lease), request)
    redis.call('PEXPIRE', KEYS[2 * i], text(lease * 2))
  end
end
return 1
"""
)
