#!lua flags=allow-oom
-- Forget customers who have not been seen for long. Who said no to nudges stays known for that, and for nothing else.
-- KEYS: customers. ARGV: the second before which one must have been seen last; for each customer the profile that stays
-- where no was said, or nothing.
-- Answers how many were forgotten.
local forgotten = 0
for i, key in ipairs(KEYS) do
  local seen = tonumber(redis.call('HGET', key, 'seen'))
  if seen and seen < tonumber(ARGV[1]) then
    local rev = redis.call('HGET', key, 'rev')
    redis.call('DEL', key)
    if ARGV[i + 1] ~= '' then redis.call('HSET', key, 'rev', string.format('%.0f', rev + 1), 'profile', ARGV[i + 1]) end
    forgotten = forgotten + 1
  end
end
return forgotten
