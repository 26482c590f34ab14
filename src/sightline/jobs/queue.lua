-- The queue in Redis: every step that must be whole, a function each. `redis.py` calls them; docs/batches-redis.md names
-- the keys. A reference `ref` is `tenant/id`, an item `tenant/id/index`; tenants are percent-encoded, so neither has a
-- slash of its own. `now` is Redis's own time, for what people are told. `ticks` is for leases: it goes on with `now`, but
-- never back, and never by more than `LEAP` between two sweeps, so that neither an administrator who sets the clock nor
-- an hour without Redis ends a lease whose holder is well.

local P = 'sightline:'
local LEAP = 2
local GONE_AFTER = 5      -- seconds without a sign of a worker
local MOST_PRUNED = 100   -- batches forgotten in one sweep
local TRIED = 4294967296  -- in the order of the items that wait, a try weighs more than any place

local now, ticks

local function read_clock(given_now, given_ticks)
  if given_now == '' then
    local time = redis.call('TIME')
    now = tonumber(time[1]) + tonumber(time[2]) / 1000000
  else
    now = tonumber(given_now)
  end
  if given_ticks == '' then
    local kept = redis.call('HMGET', P .. 'clock', 'now', 'ticks')
    local passed = now - tonumber(kept[1] or now)
    ticks = tonumber(kept[2] or 0) + math.max(0, math.min(LEAP, passed))
  else
    ticks = tonumber(given_ticks)
  end
end

local function text(number)
  return string.format('%.6f', number)
end

local function second()
  return string.format('%d', math.floor(now))
end

local function base_of(ref)
  local tenant, id = string.match(ref, '^([^/]*)/(.*)$')
  return P .. 'batch:' .. tenant .. ':' .. id, tenant, id
end

local function split(member)
  local ref, index = string.match(member, '^(.*)/(%d+)$')
  return ref, index
end

local function ref_of(id)
  local tenant = redis.call('HGET', P .. 'owners', id)
  return tenant and (tenant .. '/' .. id)
end

local function get(ref, ...)
  return redis.call('HMGET', base_of(ref), ...)
end

local function is_terminal(status)
  return status == 'completed' or status == 'failed' or status == 'expired' or status == 'cancelled'
end

-- What may be leased -------------------------------------------------------------------------------------------------

local function ready(ref)
  local base, tenant = base_of(ref)
  local made = get(ref, 'kind', 'place', 'status', 'ending')
  if made[3] == 'in_progress' and not made[4] and redis.call('EXISTS', base .. ':waiting') == 1 then
    redis.call('ZADD', P .. 'ready:' .. made[1] .. ':' .. tenant, made[2], ref)
    redis.call('SADD', P .. 'ready:' .. made[1], tenant)
  end
end

local function unready(ref)
  local _, tenant = base_of(ref)
  local kind = get(ref, 'kind')[1]
  local key = P .. 'ready:' .. kind .. ':' .. tenant
  redis.call('ZREM', key, ref)
  if redis.call('EXISTS', key) == 0 then
    redis.call('SREM', P .. 'ready:' .. kind, tenant)
  end
end

local function wait(ref, index)
  local base = base_of(ref)
  local attempts = tonumber(redis.call('HGET', base .. ':attempts', index) or 0)
  redis.call('ZADD', base .. ':waiting', attempts * TRIED + tonumber(index), index)
  ready(ref)
end

local function wake_delayed()
  for _, member in ipairs(redis.call('ZRANGE', P .. 'delayed', '-inf', text(ticks), 'BYSCORE')) do
    redis.call('ZREM', P .. 'delayed', member)
    local ref, index = split(member)
    if redis.call('HEXISTS', base_of(ref) .. ':bodies', index) == 1 then
      wait(ref, index)
    end
  end
end

-- Leases -------------------------------------------------------------------------------------------------------------

local function holder(ref, index)
  local held = redis.call('HGET', base_of(ref) .. ':leased', index)
  if not held then
    return nil
  end
  local fence, worker = string.match(held, '^(%d+) (.*)$')
  return tonumber(fence), worker
end

local function unlease(ref, index, worker)
  local base, tenant = base_of(ref)
  local member = ref .. '/' .. index
  redis.call('HDEL', base .. ':leased', index)
  redis.call('ZREM', P .. 'leases', member)
  redis.call('SREM', P .. 'held:' .. worker, member)
  if redis.call('HINCRBY', P .. 'under_way', tenant, -1) <= 0 then
    redis.call('HDEL', P .. 'under_way', tenant)
  end
end

-- States -------------------------------------------------------------------------------------------------------------

local function enter(ref, status)
  local base = base_of(ref)
  local made = get(ref, 'kept_s', 'place')
  redis.call('HSETNX', base, 'at:' .. status, second())
  redis.call('HSET', base, 'status', status)
  redis.call('HDEL', base, 'claimed_by', 'claimed_until')
  if is_terminal(status) then
    redis.call('ZREM', P .. 'stages', ref)
    redis.call('ZREM', P .. 'expiring', ref)
    redis.call('ZADD', P .. 'ended', text(now + tonumber(made[1])), ref)
  elseif status == 'in_progress' then
    redis.call('ZREM', P .. 'stages', ref)
    redis.call('ZADD', P .. 'expiring', get(ref, 'expires_at')[1], ref)
  else
    redis.call('ZADD', P .. 'stages', made[2], ref)
  end
end

-- No lease of an item counts any more; what was not done is told of by the ending alone.
local function over(ref, ending)
  local base = base_of(ref)
  local held = redis.call('HGETALL', base .. ':leased')
  for i = 1, #held, 2 do
    local _, worker = string.match(held[i + 1], '^(%d+) (.*)$')
    unlease(ref, held[i], worker)
  end
  unready(ref)
  redis.call('UNLINK', base .. ':leased', base .. ':waiting', base .. ':bodies', base .. ':attempts')
  local made = get(ref, 'total', 'completed', 'kind', 'place')
  if ending ~= 'completed' then
    redis.call('HSET', base, 'failed', tonumber(made[1]) - tonumber(made[2]))
  end
  redis.call('HSET', base, 'ending', ending)
  redis.call('ZREM', P .. 'expiring', ref)
  redis.call('ZADD', P .. 'stages', made[4], ref)
  if made[3] == 'analysis' then
    enter(ref, ending)
  elseif ending == 'completed' then
    enter(ref, 'finalizing')
  end
end

local function keep(ref, index, result, succeeded, usage)
  local base = base_of(ref)
  redis.call('HDEL', base .. ':bodies', index)
  redis.call('HDEL', base .. ':attempts', index)
  redis.call('HSET', base .. ':results', index, result)
  redis.call('HINCRBY', base, succeeded and 'completed' or 'failed', 1)
  for name, tokens in pairs(usage) do
    redis.call('HINCRBY', base, name, tokens)
  end
  local made = get(ref, 'total', 'completed', 'failed')
  if tonumber(made[2]) + tonumber(made[3]) == tonumber(made[1]) then
    over(ref, 'completed')
  end
end

local function add(ref, items, first)
  local base = base_of(ref)
  for i = first, #items, 3 do
    local index = items[i]
    if redis.call('HSETNX', base .. ':names', index, items[i + 1]) == 1 then
      redis.call('HSET', base .. ':bodies', index, items[i + 2])
      redis.call('ZADD', base .. ':waiting', index, index)
    end
  end
end

local function begin(ref, model)
  local base = base_of(ref)
  redis.call('HSET', base, 'total', redis.call('HLEN', base .. ':names'))
  if model ~= '' then
    redis.call('HSET', base, 'model', model)
  end
  if get(ref, 'status')[1] == 'cancelling' then
    over(ref, 'cancelled')
  else
    enter(ref, 'in_progress')
    ready(ref)
  end
end

local function not_begun(id)
  local ref = ref_of(id)
  if ref then
    local made = get(ref, 'status', 'ending')
    if not made[2] and (made[1] == 'validating' or made[1] == 'cancelling') then
      return ref
    end
  end
  return nil
end

local function forget(ref)
  local base, tenant, id = base_of(ref)
  local kind = get(ref, 'kind')[1]
  redis.call('UNLINK', base, base .. ':names', base .. ':results')
  redis.call('ZREM', P .. 'batches:' .. tenant .. ':' .. kind, id)
  redis.call('HDEL', P .. 'owners', id)
  redis.call('ZREM', P .. 'ended', ref)
end

local function take_away(member, exhausted)
  local ref, index = split(member)
  local fence, worker = holder(ref, index)
  if not fence then
    return
  end
  unlease(ref, index, worker)
  if tonumber(redis.call('HGET', base_of(ref) .. ':attempts', index) or 0) >= tonumber(exhausted.attempts) then
    keep(ref, index, exhausted.result, false, {})
  else
    wait(ref, index)
  end
end

-- What `redis.py` calls: from its arguments, the two of the clock left out, to its reply ---------------------------------

local step = {}

-- ref, key, digest, seconds that a key is known, how many fields; the fields; model, then items in threes
function step.create(args)
  local ref, key, digest, known_s, count = args[1], args[2], args[3], tonumber(args[4]), tonumber(args[5])
  local base, tenant, id = base_of(ref)
  local fields = {}
  for i = 6, 5 + count do
    fields[#fields + 1] = args[i]
  end
  local kind = fields[2]
  local named = P .. 'key:' .. tenant .. ':' .. kind .. ':' .. key
  if key ~= '' then
    local known = redis.call('HMGET', named, 'at', 'digest', 'id')
    if known[1] and tonumber(known[1]) > now - known_s then
      local there = redis.call('HGETALL', P .. 'batch:' .. tenant .. ':' .. known[3])
      if #there > 0 then
        return known[2] == digest and there or 'conflict'
      end
    end
  end
  if redis.call('EXISTS', base) == 0 then  -- else the same call, sent once more on another connection
    local place = redis.call('INCR', P .. 'place')
    redis.call('HSET', base, 'place', place, unpack(fields))
    redis.call('HSET', P .. 'owners', id, tenant)
    redis.call('ZADD', P .. 'batches:' .. tenant .. ':' .. kind, place, id)
    redis.call('ZADD', P .. 'stages', place, ref)
    if key ~= '' then
      redis.call('HSET', named, 'at', text(now), 'digest', digest, 'id', id)
      redis.call('EXPIRE', named, known_s)
    end
    if #args > 6 + count then
      add(ref, args, 7 + count)
      begin(ref, args[6 + count])
    end
  end
  return redis.call('HGETALL', base)
end

-- id, then items in threes: index, name, body
function step.add_items(args)
  local ref = not_begun(args[1])
  if ref then
    add(ref, args, 2)
  end
end

-- id, model
function step.begin(args)
  local ref = not_begun(args[1])
  if ref then
    begin(ref, args[2])
  end
end

-- id, errors
function step.fail(args)
  local ref = not_begun(args[1])
  if ref then
    local base = base_of(ref)
    redis.call('UNLINK', base .. ':names', base .. ':bodies', base .. ':waiting')
    redis.call('HSET', base, 'errors', args[2])
    enter(ref, get(ref, 'status')[1] == 'cancelling' and 'cancelled' or 'failed')
  end
end

-- ref
function step.cancel(args)
  local ref = args[1]
  local made = get(ref, 'status', 'ending')
  if made[1] and not is_terminal(made[1]) and not made[2] and made[1] ~= 'cancelling' then
    enter(ref, 'cancelling')
    if made[1] ~= 'validating' then
      over(ref, 'cancelled')
    end
  end
  return redis.call('HGETALL', (base_of(ref)))
end

local function next_ref()
  for _, kind in ipairs({'analysis', 'batch'}) do
    local first, fewest, oldest
    for _, tenant in ipairs(redis.call('SMEMBERS', P .. 'ready:' .. kind)) do
      local under_way = tonumber(redis.call('HGET', P .. 'under_way', tenant) or 0)
      local found = redis.call('ZRANGE', P .. 'ready:' .. kind .. ':' .. tenant, 0, 0, 'WITHSCORES')
      local place = tonumber(found[2])
      if not first or under_way < fewest or (under_way == fewest and place < oldest) then
        first, fewest, oldest = found[1], under_way, place
      end
    end
    if first then
      return first
    end
  end
  return nil
end

-- worker, how many, seconds
function step.lease(args)
  local worker, until_ = args[1], text(ticks + tonumber(args[3]))
  local taken = {}
  wake_delayed()
  while #taken < tonumber(args[2]) do
    local ref = next_ref()
    if not ref then
      break
    end
    local base, tenant, id = base_of(ref)
    local index = redis.call('ZPOPMIN', base .. ':waiting')[1]
    if redis.call('EXISTS', base .. ':waiting') == 0 then
      unready(ref)
    end
    local fence = redis.call('INCR', P .. 'fence')
    local attempt = redis.call('HINCRBY', base .. ':attempts', index, 1)
    redis.call('HSET', base .. ':leased', index, string.format('%.0f %s', fence, worker))
    redis.call('ZADD', P .. 'leases', until_, ref .. '/' .. index)
    redis.call('SADD', P .. 'held:' .. worker, ref .. '/' .. index)
    redis.call('HINCRBY', P .. 'under_way', tenant, 1)
    local names, body = redis.call('HGET', base .. ':names', index), redis.call('HGET', base .. ':bodies', index)
    local made = get(ref, 'endpoint', 'key_id')
    taken[#taken + 1] = {tenant, id, index, names, body, made[1], made[2], fence, attempt}
  end
  if #taken > 0 then
    redis.call('ZADD', P .. 'workers', text(ticks), worker)
  end
  return taken
end

-- seconds, then leases in threes: ref, index, fence. Replies which of them were lost, from 0 on.
function step.renew(args)
  local lost = {}
  for i = 2, #args, 3 do
    if holder(args[i], args[i + 1]) == tonumber(args[i + 2]) then
      redis.call('ZADD', P .. 'leases', text(ticks + tonumber(args[1])), args[i] .. '/' .. args[i + 1])
    else
      lost[#lost + 1] = (i - 2) / 3
    end
  end
  return lost
end

local function take(ref, index, fence)
  local held, worker = holder(ref, index)
  if held ~= tonumber(fence) then
    return false
  end
  unlease(ref, index, worker)
  return true
end

-- ref, index, fence, result, whether it has succeeded, then names and numbers of tokens
function step.complete(args)
  if not take(args[1], args[2], args[3]) then
    return 0
  end
  local usage = {}
  for i = 6, #args, 2 do
    usage[args[i]] = args[i + 1]
  end
  keep(args[1], args[2], args[4], args[5] == '1', usage)
  return 1
end

-- ref, index, fence, seconds, whether it was tried, tries at most, result after those
function step.give_back(args)
  local ref, index, tried = args[1], args[2], args[5] == '1'
  if not take(ref, index, args[3]) then
    return 0
  end
  local attempts = base_of(ref) .. ':attempts'
  if tried and tonumber(redis.call('HGET', attempts, index) or 0) >= tonumber(args[6]) then
    keep(ref, index, args[7], false, {})
    return 1
  end
  if not tried then
    redis.call('HINCRBY', attempts, index, -1)
  end
  redis.call('ZADD', P .. 'delayed', text(ticks + tonumber(args[4])), ref .. '/' .. index)
  return 1
end

-- leases in threes: ref, index, fence
function step.release(args)
  for i = 1, #args, 3 do
    if take(args[i], args[i + 1], args[i + 2]) then
      redis.call('HINCRBY', base_of(args[i]) .. ':attempts', args[i + 1], -1)
      wait(args[i], args[i + 1])
    end
  end
end

-- worker, then the items that it knows to hold: what else it holds was given to it in a reply that was lost
function step.disown(args)
  local known = {}
  for i = 2, #args do
    known[args[i]] = true
  end
  for _, member in ipairs(redis.call('SMEMBERS', P .. 'held:' .. args[1])) do
    if not known[member] then
      local ref, index = split(member)
      unlease(ref, index, args[1])
      redis.call('HINCRBY', base_of(ref) .. ':attempts', index, -1)
      wait(ref, index)
    end
  end
end

-- worker, tries at most, result after those, then workers that are known to be dead
function step.sweep(args)
  local exhausted = {attempts = args[2], result = args[3]}
  redis.call('HSET', P .. 'clock', 'now', text(now), 'ticks', text(ticks))
  redis.call('ZADD', P .. 'workers', text(ticks), args[1])
  local dead = redis.call('ZRANGE', P .. 'workers', '-inf', text(ticks - GONE_AFTER), 'BYSCORE')
  for i = 4, #args do
    dead[#dead + 1] = args[i]
  end
  for _, worker in ipairs(dead) do
    for _, member in ipairs(redis.call('SMEMBERS', P .. 'held:' .. worker)) do
      take_away(member, exhausted)
    end
    redis.call('DEL', P .. 'held:' .. worker)
    redis.call('ZREM', P .. 'workers', worker)
  end
  for _, member in ipairs(redis.call('ZRANGE', P .. 'leases', '-inf', text(ticks), 'BYSCORE')) do
    take_away(member, exhausted)
  end
  for _, ref in ipairs(redis.call('ZRANGE', P .. 'expiring', '-inf', text(now), 'BYSCORE')) do
    over(ref, 'expired')
  end
  for _, ref in ipairs(redis.call('ZRANGE', P .. 'ended', '-inf', text(now), 'BYSCORE', 'LIMIT', 0, MOST_PRUNED)) do
    forget(ref)
  end
end

-- to batches and analyses that have not ended, items of them that are not done, items that are leased, the oldest's age
function step.backlog()
  local batches, unfinished, oldest = 0, 0, now
  for _, key in ipairs({'stages', 'expiring'}) do
    for _, ref in ipairs(redis.call('ZRANGE', P .. key, 0, -1)) do
      local made = get(ref, 'total', 'completed', 'failed', 'made')
      batches = batches + 1
      unfinished = unfinished + tonumber(made[1] or 0) - tonumber(made[2] or 0) - tonumber(made[3] or 0)
      oldest = math.min(oldest, made[4] and cjson.decode(made[4]).created_at or now)
    end
  end
  return {batches, unfinished, redis.call('ZCARD', P .. 'leases'), text(now - oldest)}
end

-- worker, its part, seconds
function step.due(args)
  local me = args[1] .. '/' .. args[2]
  for _, ref in ipairs(redis.call('ZRANGE', P .. 'stages', 0, -1)) do
    local base = base_of(ref)
    local claim = get(ref, 'claimed_by', 'claimed_until')
    local free = not claim[1] or claim[1] == me or tonumber(claim[2]) <= ticks
    if free or not redis.call('ZSCORE', P .. 'workers', string.match(claim[1], '^(.*)/[^/]*$')) then
      redis.call('HSET', base, 'claimed_by', me, 'claimed_until', text(ticks + tonumber(args[3])))
      redis.call('ZADD', P .. 'workers', text(ticks), args[1])
      return redis.call('HGETALL', base)
    end
  end
  return {}
end

-- id, whether there is output, whether there are errors
function step.finish(args)
  local ref = ref_of(args[1])
  local made = ref and get(ref, 'status', 'ending')
  if made and made[2] and not is_terminal(made[1]) then
    local base = base_of(ref)
    redis.call('UNLINK', base .. ':names', base .. ':results')  -- they are in the files now
    redis.call('HSET', base, 'has_output', args[2], 'has_errors', args[3])
    enter(ref, made[2])
  end
end

local args = {}
for i = 4, #ARGV do
  args[i - 3] = ARGV[i]
end
read_clock(ARGV[2], ARGV[3])
return step[ARGV[1]](args)
