-- What is known of files, in Redis; `files_redis.py` calls these steps. A file is a hash, a blob has as many holders as
-- there are files of its content, and of each tenant it is known how many bytes there are. docs/batches-redis.md names
-- the keys.

local P = 'sightline:'
local MOST_EXPIRED = 500  -- files deleted in one step

local function key_of(tenant, id)
  return P .. 'file:' .. tenant .. ':' .. id
end

local step = {}

-- where the bytes are, then of the file: tenant, id, digest, quota or nothing, whether its bytes count, blob, bytes,
-- purpose, expires_at or nothing, the rest
function step.insert(args)
  if redis.call('GET', P .. 'files-at') ~= table.remove(args, 1) then
    return 'elsewhere'
  end
  local tenant, id, digest, quota, counts = args[1], args[2], args[3], args[4], args[5]
  local blob, bytes, purpose, expires_at, rest = args[6], args[7], args[8], args[9], args[10]
  local key, used_key = key_of(tenant, id), P .. 'used:' .. tenant
  if redis.call('EXISTS', key) == 1 then
    return redis.call('HMGET', key, 'blob', 'rest')
  end
  local used = tonumber(redis.call('GET', used_key) or 0)
  if quota ~= '' and used + tonumber(bytes) > tonumber(quota) then
    return used
  end
  if redis.call('HSETNX', P .. 'blobs', digest, blob) == 0 then
    blob = redis.call('HGET', P .. 'blobs', digest)
  end
  redis.call('HINCRBY', P .. 'holders', blob, 1)
  local place = redis.call('INCR', P .. 'place')
  redis.call('HSET', key, 'place', place, 'blob', blob, 'digest', digest, 'rest', rest, 'purpose', purpose,
    'counted', counts == '1' and bytes or 0)
  redis.call('ZADD', P .. 'files:' .. tenant, place, id)
  redis.call('ZADD', P .. 'files:' .. tenant .. ':' .. purpose, place, id)
  if counts == '1' then
    redis.call('INCRBY', used_key, bytes)
  end
  if expires_at ~= '' then
    redis.call('HSET', key, 'expires_at', expires_at)
    redis.call('ZADD', P .. 'files-expiring', expires_at, tenant .. '/' .. id)
  end
  return {blob, rest}
end

-- The blob that nobody holds any more, or nothing.
local function delete(tenant, id)
  local key = key_of(tenant, id)
  local file = redis.call('HMGET', key, 'blob', 'digest', 'purpose', 'counted')
  local blob = file[1]
  redis.call('ZREM', P .. 'files-expiring', tenant .. '/' .. id)
  if not blob then
    return false
  end
  redis.call('DEL', key)
  redis.call('ZREM', P .. 'files:' .. tenant, id)
  redis.call('ZREM', P .. 'files:' .. tenant .. ':' .. file[3], id)
  if tonumber(redis.call('DECRBY', P .. 'used:' .. tenant, file[4])) <= 0 then
    redis.call('DEL', P .. 'used:' .. tenant)
  end
  if redis.call('HINCRBY', P .. 'holders', blob, -1) > 0 then
    return false
  end
  redis.call('HDEL', P .. 'holders', blob)
  redis.call('HDEL', P .. 'blobs', file[2])
  return blob
end

-- tenant, id. Replies whether it was there, and the blob to be deleted.
function step.delete(args)
  local there = redis.call('EXISTS', key_of(args[1], args[2]))
  return {there, delete(args[1], args[2])}
end

-- now. Replies the blobs to be deleted.
function step.expire(args)
  local blobs = {}
  for _, found in ipairs(redis.call('ZRANGE', P .. 'files-expiring', '-inf', args[1], 'BYSCORE', 'LIMIT', 0, MOST_EXPIRED)) do
    local tenant, id = string.match(found, '^([^/]*)/(.*)$')
    local blob = delete(tenant, id)
    if blob then
      blobs[#blobs + 1] = blob
    end
  end
  return blobs
end

-- where the bytes are. Replies where others keep them, if that is elsewhere and there are any.
function step.settle(args)
  local key = P .. 'files-at'
  local there = redis.call('GET', key)
  if there and there ~= args[1] and redis.call('EXISTS', P .. 'holders') == 1 then
    return there
  end
  if there ~= args[1] then
    redis.call('SET', key, args[1])
  end
  return false
end

local args = {}
for i = 2, #ARGV do
  args[i - 1] = ARGV[i]
end
return step[ARGV[1]](args)
