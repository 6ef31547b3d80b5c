-- Forget customers who have not been seen for long. Who said no to nudges stays known for that, and for nothing else.
-- KEYS: customers. ARGV: the second before which one must have been seen last; for each customer 1 where no was said.
-- Answers how many were forgotten.
local forgotten = 0
for i, key in ipairs(KEYS) do
  local seen = tonumber(redis.call('HGET', key, 'seen'))
  if seen and seen < tonumber(ARGV[1]) then
    local profile, rev = redis.call('HGET', key, 'profile'), redis.call('HGET', key, 'rev')
    redis.call('DEL', key)
    if ARGV[i + 1] == '1' and profile then redis.call('HSET', key, 'rev', rev + 1, 'profile', profile) end
    forgotten = forgotten + 1
  end
end
return forgotten
