-- Read what a batch needs from one shard.
-- KEYS: customers, then (if ARGV[2] is 1) the program's control, then keys that hold a plain value.
-- ARGV: how many customers, whether there is a control, the fields to read of each customer.
local n, c = tonumber(ARGV[1]), tonumber(ARGV[2])
local customers = {}
for i = 1, n do
  customers[i] = redis.call('HMGET', KEYS[i], unpack(ARGV, 3))
end
local control = c == 1 and redis.call('HGETALL', KEYS[n + 1]) or {}
local values = #KEYS > n + c and redis.call('MGET', unpack(KEYS, n + c + 1)) or {}
return {customers, control, values}
