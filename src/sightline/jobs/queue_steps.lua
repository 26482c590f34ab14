-- The steps of the queue in Redis that must be whole: what `redis.py` calls, each from its arguments (the two of the clock
-- left out) to its reply. They follow queue.lua in one script.

local step = {}

-- what a key has made: the batch's fields, 'conflict' where it came with another request, nil where it is not known
local function made_by_key(tenant, named, digest, known_s)
  local known = redis.call('HMGET', named, 'at', 'digest', 'id')
  if known[1] and tonumber(known[1]) > now - known_s then
    local there = redis.call('HGETALL', P .. 'batch:' .. tenant .. ':' .. known[3])
    if #there > 0 then
      return known[2] == digest and there or 'conflict'
    end
  end
end

local function name_of_key(tenant, kind, key)
  return P .. 'key:' .. tenant .. ':' .. kind .. ':' .. key
end

-- ref, key, digest, seconds that a key is known, how many fields; the fields; model, then items in threes
function step.create(args)
  local ref, key, digest, known_s, count = args[1], args[2], args[3], tonumber(args[4]), tonumber(args[5])
  local base, tenant, id = base_of(ref)
  local fields = {}
  for i = 6, 5 + count do
    fields[#fields + 1] = args[i]
  end
  local kind = fields[2]
  local named = name_of_key(tenant, kind, key)
  local there = key ~= '' and made_by_key(tenant, named, digest, known_s)
  if there then
    return there
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

-- tenant, kind, key, digest, seconds that a key is known
function step.find_by_key(args)
  return made_by_key(args[1], name_of_key(args[1], args[2], args[3]), args[4], tonumber(args[5])) or {}
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

-- worker, its part, seconds: what this one has claimed already comes last
function step.due(args)
  local me = args[1] .. '/' .. args[2]
  local found
  for _, ref in ipairs(redis.call('ZRANGE', P .. 'stages', 0, -1)) do
    local claim = get(ref, 'claimed_by', 'claimed_until')
    if not claim[1] or tonumber(claim[2]) <= ticks then
      found = ref
      break
    elseif claim[1] == me then
      found = found or ref
    elseif not redis.call('ZSCORE', P .. 'workers', string.match(claim[1], '^(.*)/[^/]*$')) then
      found = ref
      break
    end
  end
  if not found then
    return {}
  end
  local base = base_of(found)
  redis.call('HSET', base, 'claimed_by', me, 'claimed_until', text(ticks + tonumber(args[3])))
  redis.call('ZADD', P .. 'workers', text(ticks), args[1])
  return redis.call('HGETALL', base)
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
