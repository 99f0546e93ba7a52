-- A pool of tokens for a whole fleet.  Each call is atomic; what it keeps:
--
-- H  hash    the pool: size, used, lease, grace, clocks; `read` lists them
-- Q  zset    who waits: process:wid, by number of arrival
-- S  zset    leases: process, by the pool time at which its lease ends
-- T  hash    process -> "held generation info"; the same processes as in S
--
-- Times are microseconds.  Invariants, cited elsewhere by number:
-- I1 used is the sum of what is held.      I2 nothing is granted while used >= size.
-- I3 grants follow the numbers of arrival, among those who can be reached.
-- I6 numbers, of arrivals and of grants, only rise.

local H, Q, S, T = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local op, publish, me = ARGV[1], ARGV[2], ARGV[3]
local call = redis.call
local AT_ONCE = 500 -- grants in one call, so that no call takes long

local function int(number)
  return string.format('%.0f', number) -- tostring would round
end

local function channel(process)
  return H .. ':c:' .. process
end

if op == 'list' then
  return {
    call('HGETALL', H), call('HGETALL', T), call('ZRANGE', S, 0, -1, 'WITHSCORES'),
    call('ZRANGE', Q, 0, 9999, 'WITHSCORES'), call('ZCARD', Q), call('TIME'),
  }
end

local time = call('TIME')
local wall = time[1] * 1000000 + time[2]

local NAMES = { 'epoch', 'size', 'used', 'lease', 'grace', 'n', 'clock', 'wall', 'born', 'learn', 'audit' }
local read = call('HMGET', H, unpack(NAMES))
local pool, whole = { epoch = read[1] }, read[1]
for i = 2, #NAMES do
  pool[NAMES[i]] = tonumber(read[i])
  whole = whole and pool[NAMES[i]]
end
-- With a key lost, to an eviction for example, the rest is worth nothing.
whole = whole and call('ZCARD', S) == call('HLEN', T)

if not whole and op ~= 'sync' then
  return 'gone'
end

if whole then
  -- Pool time neither goes back nor leaps when the clock of the server is set;
  -- with members alive there is a call every third of a lease.
  pool.clock = pool.clock + math.max(0, math.min(wall - pool.wall, math.floor(pool.lease / 2)))
  pool.wall = wall
end

local function record(process)
  local text = call('HGET', T, process)
  if text then
    local held, generation, info = text:match('^(%d+) (%d+) (.*)$')
    return tonumber(held), tonumber(generation), info
  end
end

local function hold(process, held, generation, info)
  call('HSET', T, process, int(held) .. ' ' .. int(generation) .. ' ' .. info)
end

local function forget(process)
  pool.used = pool.used - (record(process) or 0)
  call('HDEL', T, process)
  call('ZREM', S, process)
end

local function number()
  pool.n = math.max(pool.n + 1, wall)
  return pool.n
end

local function save()
  call('HSET', H, 'used', int(pool.used), 'n', int(pool.n), 'clock', int(pool.clock), 'wall', int(wall))
end

local next_expiry -- of the leases of others and mine, in pool time
local function reap()
  while true do
    local first = call('ZRANGE', S, 0, 0, 'WITHSCORES')
    next_expiry = tonumber(first[2])
    if not next_expiry or next_expiry > pool.clock then
      return
    end
    forget(first[1])
  end
end

local function audit()
  -- Mends what was changed by hand; once in a third of a lease, for it looks at all.
  local sum, all = 0, call('HGETALL', T)
  for i = 1, #all, 2 do
    if call('ZSCORE', S, all[i]) then
      sum = sum + (tonumber(all[i + 1]:match('^%d+')) or 0)
    else
      call('HDEL', T, all[i])
    end
  end
  pool.used = sum
  call('HSET', H, 'audit', int(pool.clock))
end

local mine, granted = {}, 0 -- mine: wid, fence, wid, fence ...

local function grantable()
  return pool.used < pool.size and pool.clock >= pool.learn and granted < AT_ONCE
end

local function deliver(process, grants)
  local count = #grants / 2
  if process == me and (op == 'step' or op == 'sync') then
    for _, word in ipairs(grants) do
      mine[#mine + 1] = word
    end
  else
    local held, generation, info = record(process)
    if not held then
      return -- died in line
    end
    local message = int(generation) .. ' ' .. table.concat(grants, ' ')
    if call(publish, channel(process), message) == 0 then
      return -- not listening: dead, or back soon and then in line again at its old place
    end
    hold(process, held + count, generation, info)
  end
  pool.used = pool.used + count
  granted = granted + count
end

local function dispatch()
  while grantable() do
    local room = math.min(pool.size - pool.used, AT_ONCE - granted, 100)
    local first = call('ZPOPMIN', Q, int(room))
    if #first == 0 then
      return
    end
    local order, groups = {}, {}
    for i = 1, #first, 2 do
      local process, wid = first[i]:match('^(.*):(%d+)$')
      if process then
        if not groups[process] then
          groups[process] = {}
          order[#order + 1] = process
        end
        local grants = groups[process]
        grants[#grants + 1] = wid
        grants[#grants + 1] = int(number())
      end
    end
    for _, process in ipairs(order) do
      deliver(process, groups[process])
    end
  end
end

local function drop_waiters(from, to)
  local gone = {}
  for i = from, to do
    gone[#gone + 1] = me .. ':' .. ARGV[i]
  end
  return #gone > 0 and call('ZREM', Q, unpack(gone)) or 0
end

if op == 'leave' or op == 'bury' then
  -- leave: me, generation, wids.  bury: a process that another has seen dead.
  local _, generation = record(me)
  if op == 'leave' and generation ~= tonumber(ARGV[4]) then
    return 'late'
  end
  if op == 'bury' then
    local counted = publish == 'SPUBLISH' and 'SHARDNUMSUB' or 'NUMSUB'
    if call('PUBSUB', counted, channel(me))[2] > 0 then
      return 'alive'
    end
  end
  drop_waiters(5, #ARGV)
  forget(me)
  reap()
  dispatch()
  save()
  return 'ok'
end

-- step: me, generation, released.
-- sync: me, generation, held, size, lease, grace, known epoch, highest number, info.
-- Both go on with: oldest wid, new size, count of cancels, cancels, then pairs of
-- a wid and its number: 0 for a new one, -1 for one that does not wait.
local generation, tail = tonumber(ARGV[4]), 6
local held, was, info = record(me)
local knew, queued_before = held and 1 or 0, call('ZCARD', Q)

if op == 'step' then
  if was ~= generation then
    return 'gone'
  end
  local released = tonumber(ARGV[5])
  held = held - released
  pool.used = pool.used - released
  if held < 0 then -- changed by hand: what the process says is true
    return 'gone'
  end
else
  tail = 12
  if was and was >= generation then
    return 'late'
  end
  local server = redis.pcall('INFO', 'server')
  if type(server) ~= 'string' then
    return redis.error_reply('NOPERM a fleet pool must be allowed to use INFO')
  end
  local run = server:match('run_id:(%w+)')
  local up = tonumber(server:match('uptime_in_seconds:(%d+)')) * 1000000
  local size, lease, grace = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
  local known = ARGV[9]
  if not whole then
    local lost = call('DEL', H, Q, S, T) > 0
    queued_before, held, knew = 0, nil, 0
    pool = { size = size, lease = lease, grace = grace, used = 0, n = 0, learn = 0, audit = wall }
    pool.clock, pool.wall, pool.born = wall, wall, wall
    pool.epoch = int(wall) .. '-' .. me
    call('HSET', H, 'epoch', pool.epoch, 'run', run)
    if lost or known ~= '' or up < grace then
      pool.learn = pool.born + grace
    end
  else
    reap()
    if call('ZCARD', S) == (call('ZSCORE', S, me) and 1 or 0) then
      -- Nobody else is alive: the newest constructor knows best.
      if call('HGET', H, 'resized') ~= '1' then
        pool.size = size
      end
      pool.lease, pool.grace = lease, grace
    end
    if call('HGET', H, 'run') ~= run then
      -- Another server, or restarted: it may know less than was granted.
      pool.born = pool.clock
      pool.learn = pool.born + pool.grace
      call('HSET', H, 'run', run)
    elseif known ~= '' and known ~= pool.epoch then
      -- What was before this epoch is lost, and who held then has a lease to say so.
      pool.learn = math.max(pool.learn, pool.born + pool.grace)
    end
    held = record(me)
  end
  pool.n = math.max(pool.n, tonumber(ARGV[10]))
  for _, name in ipairs({ 'size', 'lease', 'grace', 'born', 'learn', 'audit' }) do
    call('HSET', H, name, int(pool[name]))
  end
  local holds = tonumber(ARGV[5])
  pool.used = pool.used - (held or 0) + holds
  held, info = holds, ARGV[11]
end

call('ZADD', S, int(pool.clock + pool.lease), me)
reap()
if pool.clock >= pool.audit + pool.lease / 3 then
  hold(me, held, generation, info)
  audit()
end

local oldest, new_size, cancels = ARGV[tail], ARGV[tail + 1], tonumber(ARGV[tail + 2])
local in_line = queued_before - drop_waiters(tail + 3, tail + 2 + cancels)
if new_size ~= '' then
  pool.size = tonumber(new_size)
  call('HSET', H, 'size', new_size, 'resized', 1)
end

local base, last = math.max(pool.n + 1, wall), pool.n
for i = tail + 3 + cancels, #ARGV, 2 do
  if ARGV[i + 1] == '0' then
    last = math.max(last + 1, base)
  end
end
pool.n = last
local arrival = base
for i = tail + 3 + cancels, #ARGV, 2 do
  local wid, asked = ARGV[i], ARGV[i + 1]
  if in_line == 0 and grantable() then
    deliver(me, { wid, int(number()) })
  elseif asked ~= '-1' then
    local score = asked == '0' and int(arrival) or asked
    in_line = in_line + call('ZADD', Q, 'NX', score, me .. ':' .. wid)
  end
  if asked == '0' then
    arrival = arrival + 1
  end
end

local queued = 0
if in_line > 0 then
  dispatch()
  queued = call('ZCARD', Q)
end
if op == 'sync' or ARGV[5] ~= '0' or #mine > 0 then
  held = held + #mine / 2
  hold(me, held, generation, info)
end
save()

if queued > 0 and queued_before == 0 then
  call(publish, H .. ':r', 'recall')
end
local soon = next_expiry - pool.clock
if granted >= AT_ONCE then
  soon = 0
elseif pool.learn > pool.clock then
  soon = math.min(soon, pool.learn - pool.clock)
end
local found = oldest == '' or call('ZSCORE', Q, me .. ':' .. oldest)
local reply = {
  'ok', pool.epoch, int(pool.size), int(pool.used), int(queued), int(pool.lease), int(pool.grace),
  int(math.max(0, soon)), int(held), found and 1 or 0, int(base), knew,
  int(math.max(0, pool.learn - pool.clock)),
}
for _, word in ipairs(mine) do
  reply[#reply + 1] = word
end
return table.concat(reply, ' ')
