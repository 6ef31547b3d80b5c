#!lua flags=allow-oom
-- Forget a customer, if nothing has happened since it was read, and log the tombstone. Answers 1, or 0 if it has.
-- KEYS: the shard's log, the customer, the note that it was erased, everything else to delete.
-- ARGV: the rev expected, the tombstone, when it was erased, seconds to remember that.
if (tonumber(redis.call('HGET', KEYS[2], 'rev')) or 0) ~= tonumber(ARGV[1]) then return 0 end
redis.call('XADD', KEYS[1], '*', 'kind', 'erased', 'payload', ARGV[2])
for i = 2, #KEYS do redis.call('DEL', KEYS[i]) end
redis.call('SET', KEYS[3], ARGV[3], 'EX', ARGV[4])
return 1
