#!lua flags=allow-oom
-- One step of archiving a shard, allowed only to whoever holds its lease under the newest fence. Answers 0 where refused.
-- KEYS: the lease, the archiver's record, the shard's log.
-- ARGV: the step, the fence (none to take the lease), milliseconds to hold the lease from now on; then what it needs.
local step, fence, hold = ARGV[1], ARGV[2], ARGV[3]
if step == 'take' then
  if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
  fence = redis.call('HINCRBY', KEYS[2], 'fence', 1)
  redis.call('SET', KEYS[1], fence, 'PX', hold)
  return fence
end
if redis.call('GET', KEYS[1]) ~= fence then return 0 end
redis.call('PEXPIRE', KEYS[1], hold)
if step == 'plan' then -- first, last, count
  if redis.call('HEXISTS', KEYS[2], 'last') == 1 then return 0 end
  redis.call('HSET', KEYS[2], 'first', ARGV[4], 'last', ARGV[5], 'count', ARGV[6])
elseif step == 'advance' then -- last, the id after it: what is trimmed is archived, the rest is not
  if redis.call('HGET', KEYS[2], 'last') ~= ARGV[4] then return 0 end
  redis.call('HDEL', KEYS[2], 'first', 'last', 'count')
  redis.call('XTRIM', KEYS[3], 'MINID', ARGV[5])
elseif step == 'leave' then
  redis.call('DEL', KEYS[1])
end
return 1
