-- Take a lease, or make one's own last.
-- KEYS: the lease. ARGV: who, for how many milliseconds. Answers 1 if it is theirs now, 0 if it is another's.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
