-- Every decision of a shared limit store, in one script: Redis runs one at a time, so a decision is
-- made whole or not at all. redis_store.py builds KEYS and ARGV, and says what the entries hold.
--
-- ARGV[1] is the operation, ARGV[2] the entry of a hold or '', ARGV[3] the seconds for which a hold
-- lives at most. Times are microseconds by the clock of Redis.
local operation, entry, lifetime = ARGV[1], ARGV[2], ARGV[3] * 1000000
local id = string.match(entry, '^%w+') or ''
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local damaged = {}

-- Fail where nothing can be written (a replica, maxmemory), whatever there is to decide. Else such a
-- Redis would seem to respond now and then. This writes nothing.
local written = redis.pcall('SETRANGE', KEYS[1], 0, '')
if type(written) == 'table' and written.err and not string.find(written.err, 'WRONGTYPE') then
  return written
end

local function exact(number)
  return string.format('%.0f', number)
end

-- An entry of another form is as good as none, and is deleted.
local function replace(key)
  damaged[#damaged + 1] = key
  redis.call('DEL', key)
end

local function read(key, command, ...)
  local reply = redis.pcall(command, key, ...)
  if type(reply) == 'table' and reply.err then
    replace(key)
    reply = redis.call(command, key, ...)
  end
  return reply
end

-- Holds: a sorted set of entries by the time at which they expire. One that expires too late has
-- been written by another clock.
local function drop_expired(holds, give_back)
  local dropped = false
  local ranges = { { '-inf', exact(now) }, { '(' .. exact(now + lifetime), '+inf' } }
  for _, range in ipairs(ranges) do
    for _, expired in ipairs(read(holds, 'ZRANGEBYSCORE', range[1], range[2])) do
      redis.call('ZREM', holds, expired)
      give_back(expired)
      dropped = true
    end
  end
  return dropped
end

local function add_hold(holds)
  redis.call('ZADD', holds, exact(now + lifetime), entry)
  redis.call('PEXPIRE', holds, exact(lifetime / 1000))
end

local function release_hold(holds)
  return read(holds, 'ZREM', entry) == 1
end

-- Buckets: KEYS has one for each label, size and amount from ARGV[5] on, and then the holds where
-- there is an entry. A full bucket is the same as one that was never used.
local function clamped(bucket, full_at)
  return math.min(math.max(full_at, now), now + bucket.size)
end

local function read_bucket(key, label, seconds, amount)
  local bucket = { key = key, label = label, size = seconds * 1000000, takes = amount * 1000000 }
  bucket.full_at, bucket.uncertain, bucket.alone = now, '', ''
  local known = read(key, 'GET')
  if known then
    local full_at, written, uncertain, alone =
      string.match(known, '^(%d+) (%d+) ?(%??)(%w*)$')
    if full_at and #known <= 64 and full_at - written <= bucket.size + 1000000 then
      bucket.full_at = clamped(bucket, full_at - math.max(0, written - now))
      bucket.uncertain, bucket.alone = uncertain, alone
    else
      replace(key)
    end
  end
  return bucket
end

local function write_bucket(bucket)
  local milliseconds = math.ceil((bucket.full_at - now) / 1000)
  if milliseconds > 0 then
    local mark = bucket.uncertain .. bucket.alone
    local value = exact(bucket.full_at) .. ' ' .. exact(now) .. (mark == '' and '' or ' ' .. mark)
    redis.call('SET', bucket.key, value, 'PX', exact(milliseconds))
  else
    redis.call('DEL', bucket.key)
  end
end

local function read_buckets()
  local buckets = {}
  for at = 5, #ARGV, 3 do
    local key = KEYS[#buckets + 1]
    buckets[#buckets + 1] = read_bucket(key, ARGV[at], ARGV[at + 1], ARGV[at + 2])
  end
  return buckets
end

local function report(buckets, lacking, wait)
  local empty_for = {}
  for i, bucket in ipairs(buckets) do
    empty_for[i] = bucket.full_at - now
  end
  return { lacking, math.ceil(wait), empty_for, damaged }
end

-- Returns the bucket with the longest wait, and the wait; 0 and 0 where the amounts fit. They need
-- not fit into uncertain buckets where nothing else is held.
local function lacking_in(buckets, alone)
  local worst, longest, only_uncertain = 0, 0, true
  for i, bucket in ipairs(buckets) do
    local wait = bucket.full_at - now - math.max(0, bucket.size - bucket.takes)
    if wait > 1 then
      only_uncertain = only_uncertain and bucket.uncertain == '?'
      if wait > longest then
        worst, longest = i, wait
      end
    end
  end
  if alone and only_uncertain then
    return 0, 0
  end
  return worst, longest
end

local function charge()
  local buckets, alone, dropped = read_buckets(), false, false
  local holds = KEYS[#buckets + 1]
  if holds then
    dropped = drop_expired(holds, function(expired)
      for label, taken in string.gmatch(expired, '(%S+)=(%d+)') do
        for _, bucket in ipairs(buckets) do
          if bucket.label == label then
            bucket.full_at = clamped(bucket, bucket.full_at - taken)
            bucket.uncertain = '?'
          end
        end
      end
    end)
    alone = redis.call('ZCARD', holds) == 0
  end
  local lacking, wait = lacking_in(buckets, alone)
  if lacking == 0 then
    for _, bucket in ipairs(buckets) do
      bucket.full_at = clamped(bucket, bucket.full_at + bucket.takes)
      bucket.alone = alone and id or ''
    end
    if holds then
      add_hold(holds)
    end
  end
  if lacking == 0 or dropped then
    for _, bucket in ipairs(buckets) do
      write_bucket(bucket)
    end
  end
  return report(buckets, lacking, wait)
end

-- ARGV[4]: '?' where the API has not responded. A hold that is gone was given back as it expired.
local function adjust()
  local buckets = read_buckets()
  local holds = KEYS[#buckets + 1]
  if not holds or release_hold(holds) then
    for _, bucket in ipairs(buckets) do
      bucket.full_at = clamped(bucket, bucket.full_at + bucket.takes)
      if ARGV[4] == '?' then
        bucket.uncertain = '?'
      end
      if bucket.alone == id then
        bucket.alone = ''
      end
      write_bucket(bucket)
    end
  end
  return report(buckets, 0, 0)
end

-- The amount of the bucket is what is missing in it at least; ARGV[4] are the seconds in which what
-- is missing at most is refilled. Only a request that was alone knows the latter.
local function reconcile()
  local buckets = read_buckets()
  local bucket = buckets[1]
  local full_at = math.max(bucket.full_at, now + bucket.takes)
  if id ~= '' and bucket.alone == id then
    full_at = math.min(full_at, now + ARGV[4] * 1000000)
    bucket.uncertain, bucket.alone = '', ''
  end
  bucket.full_at = clamped(bucket, full_at)
  write_bucket(bucket)
  return report(buckets, 0, 0)
end

-- Dollars: KEYS[1] is a hash of what each process has spent in all on a day, KEYS[2] the holds, and
-- then the hashes of other keys. ARGV[4] is the process, ARGV[5] what it has spent, ARGV[6] the
-- seconds for which a day is kept. A process only ever raises its own number, so that telling it
-- twice, late, or again after a loss changes nothing.
local function is_amount(text)
  return text and #text < 20 and string.match(text, '^%d+$')
end

-- Returns what the process has spent, which may be more than it knew when it asked.
local function record_own()
  local known = read(KEYS[1], 'HGET', ARGV[4])
  if is_amount(known) and tonumber(known) >= tonumber(ARGV[5]) then
    return known
  end
  if ARGV[5] ~= '0' then
    redis.call('HSET', KEYS[1], ARGV[4], ARGV[5])
    redis.call('EXPIRE', KEYS[1], ARGV[6])
  end
  return ARGV[5]
end

local function spent_by_others(key)
  local sum, entries = 0, read(key, 'HGETALL')
  for i = 1, #entries, 2 do
    local process, amount = entries[i], entries[i + 1]
    if process ~= '-' and not is_amount(amount) then
      damaged[#damaged + 1] = key
      redis.call('HDEL', key, process)
    elseif process ~= '-' and process ~= ARGV[4] then
      sum = sum + amount
    end
  end
  return sum
end

-- Returns the amounts of all holds together, and their number. The hash keeps both under '-', as to
-- add up a thousand holds takes 2 ms. Where it is not of the same number, they are added up again.
local function sum_of_holds()
  local number = redis.call('ZCARD', KEYS[2])
  local sum, known = string.match(redis.call('HGET', KEYS[1], '-') or '', '^(%d+) (%d+)$')
  if tonumber(known) ~= number then
    sum = 0
    for _, held in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
      sum = sum + (string.match(held, '^%w+ (%d+)$') or 0)
    end
  end
  return tonumber(sum), number
end

local function keep_sum(sum, number)
  if number == 0 then
    redis.call('HDEL', KEYS[1], '-')
  else
    redis.call('HSET', KEYS[1], '-', exact(sum) .. ' ' .. number)
    redis.call('EXPIRE', KEYS[1], ARGV[6])
  end
end

-- ARGV[7] is what others are known to have spent, ARGV[8] the amount, ARGV[9] the budget.
local function reserve()
  local others = {}
  drop_expired(KEYS[2], function() end)
  for i = 1, #KEYS do
    if i ~= 2 then
      others[#others + 1] = exact(spent_by_others(KEYS[i]))
    end
  end
  local spent = record_own() + math.max(others[1], ARGV[7])
  local reserved, number = sum_of_holds()
  local granted = spent < tonumber(ARGV[9]) and spent + reserved + ARGV[8] <= tonumber(ARGV[9])
  if granted and entry ~= '' then
    add_hold(KEYS[2])
    keep_sum(reserved + ARGV[8], number + 1)
  end
  return { granted and 1 or 0, exact(reserved), others, damaged }
end

local function settle()
  record_own()
  if entry ~= '' then
    local holds = read(KEYS[2], 'ZCARD')
    local sum, number = sum_of_holds()
    if holds > 0 and release_hold(KEYS[2]) then
      keep_sum(sum - string.match(entry, '%d+$'), number - 1)
    end
  end
  return { 0, '0', {}, damaged }
end

local operations = {
  charge = charge, adjust = adjust, reconcile = reconcile, reserve = reserve, settle = settle,
}
return operations[operation]()
