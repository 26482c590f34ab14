-- The queue in Redis: what the steps of queue_steps.lua, which follows it in one script, are made of. docs/batches-redis.md
-- names the keys. A reference `ref` is `tenant/id`, an item `tenant/id/index`; tenants are percent-encoded, so neither has a
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
