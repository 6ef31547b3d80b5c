-- Create the layout of an empty store; return the layout and the salts that are there then.
-- KEYS: layout, salts. ARGV: version, shards, simulated, erasure key, salt id, salt key.
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[2], ARGV[5], ARGV[6])
  redis.call('HSET', KEYS[1], 'version', ARGV[1], 'shards', ARGV[2], 'simulated', ARGV[3], 'erasure_key', ARGV[4],
    'salt', ARGV[5])
end
return {redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2])}
