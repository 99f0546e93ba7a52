-- A pool of tokens for a whole fleet.  Each call is atomic; what it keeps:
--
-- H  string  the pool: its numbers, packed; `FIELDS` lists them
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
local AT_ONCE = 500 -- of a line in one call, so that no call takes long

local function int(number)
  return string.format('%d', number) -- tostring would round
end

local function channel(process)
  return H .. ':c:' .. process
end

if op == 'list' then -- and how many of those in line at most
  return {
    call('GET', H), call('HGETALL', T), call('ZRANGE', S, 0, -1, 'WITHSCORES'),
    call('ZRANGE', Q, 0, tonumber(me or 10000) - 1, 'WITHSCORES'), call('ZCARD', Q), call('TIME'),
  }
end

local time = call('TIME')
local wall = time[1] * 1000000 + time[2]

-- due: no lease ends before it.  resized: 1 once somebody has set the size.
local FIELDS = '<ddddddddddddss'
local pool, whole = {}, false
whole, pool.size, pool.used, pool.lease, pool.grace, pool.n, pool.clock, pool.wall, pool.born,
  pool.learn, pool.audit, pool.due, pool.resized, pool.epoch, pool.run =
  pcall(struct.unpack, FIELDS, call('GET', H) or '')

local function save()
  call('SET', H, struct.pack(FIELDS, pool.size, pool.used, pool.lease, pool.grace, pool.n,
    pool.clock, pool.wall, pool.born, pool.learn, pool.audit, pool.due, pool.resized,
    pool.epoch, pool.run))
end

if op == 'sync' then
  -- With a key lost, to an eviction for example, the rest is worth nothing.
  whole = whole and call('ZCARD', S) == call('HLEN', T)
elseif not whole then
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
  call('HSET', T, process, held .. ' ' .. generation .. ' ' .. info)
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

local function reap()
  while true do
    local first = call('ZRANGE', S, 0, 0, 'WITHSCORES')
    pool.due = tonumber(first[2]) or math.huge
    if pool.due > pool.clock then
      return
    end
    forget(first[1])
  end
end

local function audit()
  -- Mends what was changed by hand; once in a third of a lease, for it looks at all.
  local sum, all, alive = 0, call('HGETALL', T), {}
  for _, process in ipairs(call('ZRANGE', S, 0, -1)) do
    alive[process] = true
  end
  for i = 1, #all, 2 do
    if alive[all[i]] then
      sum = sum + (tonumber(all[i + 1]:match('^%d+')) or 0)
    else
      call('HDEL', T, all[i])
    end
  end
  pool.used, pool.audit = sum, pool.clock
end

local mine = {} -- wid, fence, wid, fence ... of who was in line
local deaf = {} -- processes that do not listen
local looked = 0 -- at so many who want, granted or passed over
-- Who steps goes on at once with another call; others have nobody who would.
local most = (op == 'step' or op == 'sync') and AT_ONCE or math.huge

local function grantable()
  return pool.used < pool.size and pool.clock >= pool.learn and looked < most
end

local function deliver(process, grants)
  local count = #grants / 2
  looked = looked + count
  if process == me and (op == 'step' or op == 'sync') then
    for _, word in ipairs(grants) do
      mine[#mine + 1] = word
    end
  else
    local held, generation, info
    if not deaf[process] then
      held, generation, info = record(process)
    end
    if not held then
      deaf[process] = true
      return -- died in line
    end
    local message = int(generation) .. ' ' .. table.concat(grants, ' ')
    if call(publish, channel(process), message) == 0 then
      deaf[process] = true
      return -- not listening: dead, or back soon and then in line again at its old place
    end
    hold(process, held + count, generation, info)
  end
  pool.used = pool.used + count
end

local function dispatch()
  while grantable() do
    local room = math.min(pool.size - pool.used, most - looked, 100)
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
  local gone = 0
  for begin = from, to, AT_ONCE do -- unpack has its limits
    local some = {}
    for i = begin, math.min(to, begin + AT_ONCE - 1) do
      some[#some + 1] = me .. ':' .. ARGV[i]
    end
    gone = gone + call('ZREM', Q, unpack(some))
  end
  return gone
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
-- Both go on with: oldest wid, new size, count of cancels, cancels, then who wants:
-- "wid"; "wid:number" for one with a place in line; "wid-" for one that does not wait.
local generation, tail = tonumber(ARGV[4]), 6
local held, was, info = record(me)
local noted = held
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
    pool = { size = size, lease = lease, grace = grace, used = 0, n = 0, learn = 0, resized = 0 }
    pool.clock, pool.wall, pool.born, pool.audit, pool.due = wall, wall, wall, wall, math.huge
    pool.epoch, pool.run = int(wall) .. '-' .. me, run
    if lost or known ~= '' or up < grace then
      pool.learn = pool.born + grace
    end
  else
    reap()
    if call('ZCARD', S) == (call('ZSCORE', S, me) and 1 or 0) then
      -- Nobody else is alive: the newest constructor knows best.
      if pool.resized == 0 then
        pool.size = size
      end
      pool.lease, pool.grace = lease, grace
    end
    if pool.run ~= run then
      -- Another server, or restarted: it may know less than was granted.
      pool.born = pool.clock
      pool.learn = pool.born + pool.grace
      pool.run = run
    elseif known ~= '' and known ~= pool.epoch then
      -- What was before this epoch is lost, and who held then has a lease to say so.
      pool.learn = math.max(pool.learn, pool.born + pool.grace)
    end
    held = record(me)
  end
  pool.n = math.max(pool.n, tonumber(ARGV[10]))
  local holds = tonumber(ARGV[5])
  pool.used = pool.used - (held or 0) + holds
  held, info, noted = holds, ARGV[11], nil
end

local ends = pool.clock + pool.lease
if call('ZADD', S, int(ends), me) == 1 and op == 'step' then
  call('DEL', S) -- it was lost, and the next sync must see that
  return 'gone'
end
pool.due = math.min(pool.due, ends)
if pool.clock >= pool.due then
  reap()
end
if pool.clock >= pool.audit + pool.lease / 3 then
  hold(me, held, generation, info)
  noted = held
  if call('ZCARD', S) ~= call('HLEN', T) then
    call('DEL', S) -- a member was removed by hand, and nobody knows what it held
    return 'gone'
  end
  audit()
end

local oldest, new_size, cancels = ARGV[tail], ARGV[tail + 1], tonumber(ARGV[tail + 2])
local in_line = queued_before
if cancels > 0 then
  in_line = in_line - drop_waiters(tail + 3, tail + 2 + cancels)
end
if new_size ~= '' then
  pool.size, pool.resized = tonumber(new_size), 1
end

-- Each who wants has a number of arrival: base, base + 1 ...  It is the fence of
-- those who need not stand in line, the first `direct` ones.
local first = tail + 3 + cancels
local wants, base, direct = #ARGV - first + 1, math.max(pool.n + 1, wall), 0
if wants > 0 then
  pool.n = base + wants - 1
  if in_line == 0 and grantable() then
    direct = math.min(wants, pool.size - pool.used, AT_ONCE)
    pool.used, looked = pool.used + direct, direct
  end
  local line = {}
  for i = first + direct, #ARGV do
    local wid, asked = ARGV[i]:match('^(%d+)(.*)$')
    if asked ~= '-' then
      line[#line + 1] = asked == '' and int(base + i - first) or asked:sub(2)
      line[#line + 1] = me .. ':' .. wid
    end
  end
  if #line > 0 then
    in_line = in_line + call('ZADD', Q, 'NX', unpack(line))
  end
end

local queued = 0
if in_line > 0 then
  dispatch()
  queued = call('ZCARD', Q)
end
held = held + direct + #mine / 2
if held ~= noted then
  hold(me, held, generation, info)
end
save()

if queued > 0 and queued_before == 0 or new_size ~= '' and pool.used > pool.size then
  call(publish, H .. ':r', 'recall')
end
local soon = pool.due - pool.clock
if looked >= most then
  soon = 0
elseif pool.learn > pool.clock then
  soon = math.min(soon, pool.learn - pool.clock)
end
local found = oldest == '' or call('ZSCORE', Q, me .. ':' .. oldest)
local reply = string.format('ok %d %d %d %d %d %d %d %d %d %d', held, pool.used, queued,
  math.max(0, soon), base, direct, found and 1 or 0, pool.size, pool.lease, pool.grace)
if op == 'sync' then
  reply = string.format('%s %s %d %d', reply, pool.epoch, knew,
    math.max(0, pool.learn - pool.clock))
end
if #mine > 0 then
  reply = reply .. ' ' .. table.concat(mine, ' ')
end
return reply
