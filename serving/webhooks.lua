-- One step of sending the messages of a shard to a target. Answers 1, or 0 where it was refused or there is nothing.
-- KEYS: the lease, ids by when they are due, the messages, the dead ones, their ids by when they were given up.
-- ARGV: the step, who asks, milliseconds to hold the lease; then the id of a message, when it is due, the message;
-- how many dead ones to keep at most.
local step, who, hold, id = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local holder = redis.call('GET', KEYS[1])
if step == 'take' then
  if holder and holder ~= who then return 0 end
  redis.call('SET', KEYS[1], who, 'PX', hold)
  return 1
elseif step == 'leave' then
  if holder == who then redis.call('DEL', KEYS[1]) end
  return 1
elseif step == 'done' then -- it has arrived, whoever holds the lease now
  redis.call('ZREM', KEYS[2], id)
  return redis.call('HDEL', KEYS[3], id)
elseif step == 'replay' then
  if redis.call('HDEL', KEYS[4], id) == 0 then return 0 end
  redis.call('ZREM', KEYS[5], id)
elseif step == 'drop' then
  redis.call('ZREM', KEYS[5], id)
  redis.call('ZREM', KEYS[2], id)
  return redis.call('HDEL', KEYS[3], id) + redis.call('HDEL', KEYS[4], id)
else
  if holder ~= who or redis.call('HEXISTS', KEYS[3], id) == 0 then return 0 end
  if step == 'bury' then
    redis.call('ZREM', KEYS[2], id)
    redis.call('HDEL', KEYS[3], id)
    redis.call('HSET', KEYS[4], id, ARGV[6])
    redis.call('ZADD', KEYS[5], ARGV[5], id)
    local beyond = redis.call('HLEN', KEYS[4]) - tonumber(ARGV[7])
    for _ = 1, beyond do
      local oldest = redis.call('ZPOPMIN', KEYS[5])[1]
      if oldest then redis.call('HDEL', KEYS[4], oldest) end
    end
    return 1
  end
end
redis.call('HSET', KEYS[3], id, ARGV[6]) -- later, or again
redis.call('ZADD', KEYS[2], ARGV[5], id)
return 1
