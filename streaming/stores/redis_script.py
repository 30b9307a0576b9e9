"""What is done in Redis in one step: one Lua script, whose first argument names the step.

In: a step and its arguments. Out: its result; `GONE`, `EXISTS` and `LIMIT` where it is refused, before anything is
written. Under the prefix: `r:ID` a record, `e:ID` its events, `o:OWNER KIND` its owner's records by age, `a:OWNER KIND`
those that are active; `active`, `ended` and `ended:run` by time; `f:ID` front ends and `c:THING` claims, which expire; `k:KEY` what was
used of a key; `v:ID` conversations, `i:ID` and `d:ID` their items' order and contents.
"""

SCRIPT = r"""
local P, A = KEYS[1], ARGV
local call, step = redis.call, ARGV[1]

local function now()
  local t = call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1000000
end
local function text(number) return string.format('%.6f', number) end
local function record(id) return P .. 'r:' .. id end

local function drop(id)
  local h = call('HMGET', record(id), 'owner', 'kind', 'bytes')
  if not h[1] then return end
  local of = h[1] .. ' ' .. h[2]
  call('ZREM', P .. 'o:' .. of, id)
  call('SREM', P .. 'a:' .. of, id)
  call('ZREM', P .. 'active', id)
  call('ZREM', P .. 'ended', id)
  call('ZREM', P .. 'ended:run', id)
  call('DECRBY', P .. 'bytes', h[3])
  call('DEL', record(id), P .. 'e:' .. id)
end

local function drop_conversation(id)
  call('DECRBY', P .. 'bytes', call('HGET', P .. 'v:' .. id, 'bytes') or 0)
  call('DEL', P .. 'v:' .. id, P .. 'i:' .. id, P .. 'd:' .. id)
  call('ZREM', P .. 'used', id)
end

local function is_its_own(id, run)
  local h = call('HMGET', record(id), 'run', 'ended')
  return h[1] == run and h[2] == ''
end

local function grow(id, size)
  call('HINCRBY', record(id), 'bytes', size)
  call('INCRBY', P .. 'bytes', size)
end

local function append(id, first, from, last)
  if last < from then return end
  local size = 0
  for index = from, last do
    call('RPUSH', P .. 'e:' .. id, A[index])
    size = size + #A[index] + 16
  end
  call('HINCRBY', record(id), 'next_sequence', last - from + 1)
  grow(id, size)
end

local function set(id, name, value)
  grow(id, #value - call('HSTRLEN', record(id), name))
  call('HSET', record(id), name, value)
end

local function has_ended(id, kind, ended)
  call('ZADD', P .. 'ended', ended, id)
  if kind == 'run' then call('ZADD', P .. 'ended:run', ended, id) end
end

local function head(id)
  return call('HMGET', record(id), 'created', 'run', 'status', 'next_sequence', 'cancel_asked', 'ended')
end

local function lives(id) return id and call('EXISTS', P .. 'f:' .. id) == 1 end

if step == 'create' then
  local id, owner, kind, replace, most = A[2], A[3], A[4], A[5], tonumber(A[6])
  local there = call('EXISTS', record(id)) == 1
  if there and replace == '0' then return 'EXISTS' end
  local of = owner .. ' ' .. kind
  if most > 0 then
    local active = call('SCARD', P .. 'a:' .. of) - call('SISMEMBER', P .. 'a:' .. of, id)
    if active >= most then return 'LIMIT' end
  end
  if there then drop(id) end
  local created, ended = A[7], A[8]
  if created == '0.000000' then created = text(now()) end
  call('HSET', record(id), 'id', id, 'owner', owner, 'kind', kind, 'created', created,
    'next_sequence', '0', 'cancel_asked', '0', 'bytes', '0', 'ended', ended)
  local size = 256
  for index = 9, #A, 2 do
    call('HSET', record(id), A[index], A[index + 1])
    size = size + #A[index + 1]
  end
  grow(id, size)
  call('ZADD', P .. 'o:' .. of, created, id)
  if ended == '' then
    call('SADD', P .. 'a:' .. of, id)
    call('ZADD', P .. 'active', created, id)
  else
    has_ended(id, kind, ended)
  end
  return 'OK'

elseif step == 'append' then
  local id, run, first = A[2], A[3], A[4]
  if not is_its_own(id, run) then return 'GONE' end
  if call('HGET', record(id), 'next_sequence') ~= first then return 'GONE' end
  append(id, first, 5, #A)
  return 'OK'

elseif step == 'finish' then
  local id, run, first, status, fields = A[2], A[3], A[4], A[5], tonumber(A[6])
  if not is_its_own(id, run) then return 'GONE' end
  local events = 7 + 2 * fields
  if events <= #A and call('HGET', record(id), 'next_sequence') ~= first then return 'GONE' end
  append(id, first, events, #A)
  for index = 7, events - 1, 2 do set(id, A[index], A[index + 1]) end
  local ended = text(now())
  call('HSET', record(id), 'status', status, 'ended', ended)
  local h = call('HMGET', record(id), 'owner', 'kind')
  call('SREM', P .. 'a:' .. h[1] .. ' ' .. h[2], id)
  call('ZREM', P .. 'active', id)
  has_ended(id, h[2], ended)
  return 'OK'

elseif step == 'update' then
  local id, run = A[2], A[3]
  if not is_its_own(id, run) then return 'GONE' end
  for index = 4, #A, 2 do set(id, A[index], A[index + 1]) end
  return 'OK'

elseif step == 'heads' then
  local heads = {}
  for index = 2, #A do heads[#heads + 1] = head(A[index]) end
  return heads

elseif step == 'events' then
  local id, owner, start, limit = A[2], A[3], tonumber(A[4]), tonumber(A[5])
  if call('HGET', record(id), 'owner') ~= owner then return false end
  local events = {}
  while limit > 0 do
    local some = call('LRANGE', P .. 'e:' .. id, start, start + 63)
    for _, event in ipairs(some) do
      if limit <= 0 then break end
      events[#events + 1] = event
      limit = limit - #event
    end
    start = start + 64
    if #some < 64 then break end
  end
  return {head(id), events}

elseif step == 'delete' then
  if call('HGET', record(A[2]), 'owner') ~= A[3] then return 0 end
  drop(A[2])
  return 1

elseif step == 'ask_cancel' then
  local h = call('HMGET', record(A[2]), 'owner', 'ended')
  if h[1] == A[3] and h[2] == '' then call('HSET', record(A[2]), 'cancel_asked', '1') end
  return 1

elseif step == 'adopt' then
  local adopted, limit = {}, tonumber(A[4])
  for _, id in ipairs(call('ZRANGE', P .. 'active', 0, -1)) do
    if #adopted >= limit then break end
    local h = call('HMGET', record(id), 'front_end', 'run')
    if not lives(h[1]) or (h[1] == A[2] and h[2] == A[3]) then
      call('HSET', record(id), 'front_end', A[2], 'run', A[3])
      adopted[#adopted + 1] = id
    end
  end
  return adopted

elseif step == 'claim' then
  local key, mine, milliseconds, instead_of, by_force = P .. 'c:' .. A[2], A[3], tonumber(A[4]), A[5], A[6]
  if by_force == '0' then
    local owner = call('GET', key)
    if lives(owner) and owner ~= mine and owner ~= instead_of then return owner end
  end
  if milliseconds > 0 then call('SET', key, mine, 'PX', milliseconds) else call('DEL', key) end
  return false

elseif step == 'owner_of' then
  local owner = call('GET', P .. 'c:' .. A[2])
  if lives(owner) then return owner end
  return false

elseif step == 'use_key' then
  local key, requests, tokens, per_minute = P .. 'k:' .. A[2], tonumber(A[3]), tonumber(A[4]), tonumber(A[5])
  local time = now()
  local today = math.floor(time / 86400)
  local h = call('HMGET', key, 'paid_until', 'day', 'tokens')
  local paid, used = tonumber(h[1] or '0'), tonumber(h[3] or '0')
  if tonumber(h[2] or '0') ~= today then used = 0 end
  used = used + tokens
  local ahead = math.max(time, paid) - time
  if per_minute > 0 and requests > 0 then ahead = ahead + requests * 60 / per_minute end
  if ahead <= 60.000001 then paid = time + ahead end
  call('HSET', key, 'paid_until', text(paid), 'day', today, 'tokens', string.format('%d', used))
  call('EXPIRE', key, 172800)
  return {text(ahead), string.format('%d', used)}

elseif step == 'sweep' then
  local before, run_before, most, limit = tonumber(A[2]), tonumber(A[3]), tonumber(A[4]), tonumber(A[5])
  local time, swept = now(), 0
  local old = call('ZRANGEBYSCORE', P .. 'ended', '-inf', '(' .. text(time - before), 'LIMIT', 0, limit)
  for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'ended:run', '-inf', '(' .. text(time - run_before), 'LIMIT', 0, limit)) do
    old[#old + 1] = id
  end
  for _, id in ipairs(old) do
    if call('EXISTS', record(id)) == 1 then drop(id); swept = swept + 1 end
  end
  if swept == 0 then
    while swept < limit and tonumber(call('GET', P .. 'bytes') or '0') > most do
      local ended = call('ZRANGE', P .. 'ended', 0, 0, 'WITHSCORES')
      local used = call('ZRANGE', P .. 'used', 0, 0, 'WITHSCORES')
      if not ended[1] and not used[1] then break end
      if used[1] and (not ended[1] or tonumber(used[2]) < tonumber(ended[2])) then
        drop_conversation(used[1])
      else
        drop(ended[1])
      end
      swept = swept + 1
    end
  end
  for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'used', '-inf', '(' .. text(time - before), 'LIMIT', 0, limit)) do
    drop_conversation(id)
    swept = swept + 1
  end
  return swept
end

-- conversations: A[2] is the id, A[3] the owner
local id, owner = A[2], A[3]
local conversation, order, data = P .. 'v:' .. id, P .. 'i:' .. id, P .. 'd:' .. id
local function resize(size)
  call('HINCRBY', conversation, 'bytes', size)
  call('INCRBY', P .. 'bytes', size)
  call('ZADD', P .. 'used', text(now()), id)
end

if step == 'create_conversation' then
  local created = A[5]
  if created == '0.000000' then created = text(now()) end
  call('HSET', conversation, 'id', id, 'owner', owner, 'body', A[4], 'created', created, 'next', '0', 'bytes', '0')
  resize(#A[4] + 256)
  return 1
end
if call('HGET', conversation, 'owner') ~= owner then return false end
if step == 'update_conversation' then
  resize(#A[4] - call('HSTRLEN', conversation, 'body'))
  call('HSET', conversation, 'body', A[4])
  return 1
elseif step == 'delete_conversation' then
  drop_conversation(id)
  return 1
elseif step == 'add_items' then
  local size = 0
  for index = 4, #A, 2 do
    call('ZADD', order, call('HINCRBY', conversation, 'next', 1), A[index])
    if call('HEXISTS', data, A[index]) == 1 then size = size - call('HSTRLEN', data, A[index]) - 256 end
    call('HSET', data, A[index], A[index + 1])
    size = size + #A[index + 1] + 256
  end
  resize(size)
  return 1
elseif step == 'items' then
  local after, newest_first, limit = A[4], A[5], tonumber(A[6])
  local rank = -1
  local range, rank_of = 'ZRANGE', 'ZRANK'
  if newest_first == '1' then range, rank_of = 'ZREVRANGE', 'ZREVRANK' end
  if after ~= '' then
    rank = call(rank_of, order, after)
    if not rank then return {} end
  end
  local found = {}
  for _, item in ipairs(call(range, order, rank + 1, rank + limit)) do
    found[#found + 1] = {item, call('HGET', data, item)}
  end
  return found
elseif step == 'get_item' then
  return call('HGET', data, A[4])
elseif step == 'delete_item' then
  local size = call('HSTRLEN', data, A[4])
  if call('ZREM', order, A[4]) == 0 then return 0 end
  call('HDEL', data, A[4])
  resize(-size - 256)
  return 1
end
return redis.error_reply('no such step: ' .. step)
"""
