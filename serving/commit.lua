-- Commit rows to one shard, each whole or not at all. What a row says is in `Row` of calls.py, field by field.
-- KEYS: the shard's log, the program's control, its reservations by expiry, its overrun; then what rows point at.
-- ARGV: the rows as MessagePack; seconds to keep answers and outcome ids; how many ids a history keeps at least; then contents.
-- Answers a row with 1 (committed), 0 (stale: nothing written), or the answer that was given before.
-- Lua does not roll back, so a row is checked in full before it writes anything.
local rows = cmsgpack.unpack(ARGV[1])
local keep, remembered = ARGV[2], tonumber(ARGV[3])
local time = redis.call('TIME')
local now, born = time[1], time[1] * 1000000 + time[2] -- a customer who comes back never has a rev again
local control
local none = {}
local used, changed = {}, {} -- what is used of each resource, and for how many seconds to keep what has changed

local function in_use(key)
  if not used[key] then
    used[key] = tonumber(redis.call('GET', KEYS[key])) or 0
  end
  return used[key]
end

local function use(key, seconds, amount)
  if amount == 0 then return end
  local now = in_use(key) + amount
  if now < 0 then now = 0 end
  used[key], changed[key] = now, seconds
end

local function keep_used()
  for key, seconds in pairs(changed) do
    local amount = string.format('%.0f', used[key])
    if seconds > 0 then redis.call('SET', KEYS[key], amount, 'EX', seconds)
    else redis.call('SET', KEYS[key], amount) end
  end
end

local function verdict(row)
  if row[3] > 0 then
    local answer = redis.call('GET', KEYS[row[3]])
    if answer then return answer end
  end
  if (tonumber(redis.call('HGET', KEYS[row[1]], 'rev')) or 0) ~= row[2] then return 0 end
  if row[5] >= 0 then
    control = control or tonumber(redis.call('HGET', KEYS[2], 'rev')) or 0
    if control ~= row[5] then return 0 end
  end
  for _, claim in ipairs(row[6] or none) do
    local left = claim[3] - in_use(claim[1])
    if left < 0 then left = 0 end
    if left < claim[4] or left >= claim[5] then return 0 end
  end
  return 1
end

local function write(row)
  for _, event in ipairs(row[9] or none) do
    redis.call('XADD', KEYS[1], '*', 'kind', event[1], 'payload', ARGV[event[2]])
  end
  local rev = row[2] == 0 and born or row[2] + 1
  local fields = {'rev', string.format('%.0f', rev), 'seen', now}
  for _, field in ipairs(row[8] or none) do
    fields[#fields + 1] = field[1]
    fields[#fields + 1] = ARGV[field[2]]
  end
  redis.call('HSET', KEYS[row[1]], unpack(fields))
  for _, claim in ipairs(row[6] or none) do use(claim[1], claim[2], claim[6]) end
  for _, move in ipairs(row[7] or none) do use(move[1], move[2], move[3]) end
  for _, outcome in ipairs(row[10] or none) do
    redis.call('SET', KEYS[outcome[1]], outcome[2], 'EX', keep)
  end
  if row[3] > 0 then
    redis.call('SET', KEYS[row[3]], ARGV[row[4]], 'EX', keep)
    if redis.call('LPUSH', KEYS[row[13]], row[14]) >= 2 * remembered then
      redis.call('LTRIM', KEYS[row[13]], 0, remembered - 1)
    end
  end
  for _, due in ipairs(row[11] or none) do redis.call('ZADD', KEYS[3], due[1], ARGV[due[2]]) end
  for _, done in ipairs(row[12] or none) do redis.call('ZREM', KEYS[3], ARGV[done]) end
  for _, cost in ipairs(row[15] or none) do
    redis.call('HINCRBY', KEYS[4], 'count', 1)
    redis.call('HINCRBY', KEYS[4], 'amount', cost)
  end
  for _, watch in ipairs(row[17] or none) do
    if watch[2] < 0 then redis.call('ZREM', KEYS[watch[1]], ARGV[watch[3]])
    else redis.call('ZADD', KEYS[watch[1]], watch[2], ARGV[watch[3]]) end
  end
  for _, message in ipairs(row[16] or none) do -- the ids that are due, the messages, an id, the message
    if redis.call('HSETNX', KEYS[message[2]], message[3], ARGV[message[4]]) == 1 then
      redis.call('ZADD', KEYS[message[1]], 0, message[3])
    end
  end
end

local verdicts = {}
local done, failure = pcall(function()
  for i, row in ipairs(rows) do
    verdicts[i] = verdict(row)
    if verdicts[i] == 1 then write(row) end
  end
end)
keep_used() -- once for all rows, and whatever has failed: what is written is paid for
if not done then return failure.err and failure or redis.error_reply(tostring(failure)) end -- its kind is kept: OOM
return verdicts
