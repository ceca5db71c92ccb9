-- What an A/B test's log says of an inference request, for Envoy's Lua filter (LuaJIT, for its bit operations). It writes into the
-- request's metadata, from which the access log (build/exposure_log.py) makes a line; who has none there is not logged.
--
-- A user is HMAC-SHA256 of what the routes hash, under a key that this process was started with: without the key nobody can
-- tell, or try out, whom a line is of. Without a key of KEY_BYTES nothing is logged. The answer is passed on chunk by chunk, as it comes; of it
-- the first chunk's time and id are read, and the token counts at its end.

local NAMESPACE = "finetune.exposure"
local KEY_BYTES = 16
local HEAD, TAIL = 1024, 1024 -- bytes of an answer in which its id and its token counts are looked for
local KEY = string.match(os.getenv("FINETUNE_EXPOSURE_KEY") or "", "^%s*(.-)%s*$")
local bit = require("bit")
local band, bnot, bor, bxor, lshift, ror, rshift, tobit = bit.band, bit.bnot, bit.bor, bit.bxor, bit.lshift, bit.ror, bit.rshift, bit.tobit

-- SHA-256 as in FIPS 180-4: roots of primes, 32 bits behind the point.
local ROUNDS, START, SCHEDULE = {}, {}, {}
local function fraction(number)
  return tobit(math.floor(number % 1 * 2 ^ 32))
end
local candidate = 2
while #ROUNDS < 64 do
  local prime = true
  for divisor = 2, math.floor(math.sqrt(candidate)) do
    prime = prime and candidate % divisor ~= 0
  end
  if prime then
    ROUNDS[#ROUNDS + 1] = fraction(candidate ^ (1 / 3))
    START[#START + 1] = #START < 8 and fraction(math.sqrt(candidate)) or nil
  end
  candidate = candidate + 1
end

-- The state after the 64 bytes of `text` from `at` on.
local function compressed(state, text, at)
  local w = SCHEDULE
  for i = 1, 16 do
    local p, q, r, s = string.byte(text, at + 4 * i - 4, at + 4 * i - 1)
    w[i] = bor(lshift(p, 24), lshift(q, 16), lshift(r, 8), s)
  end
  for i = 17, 64 do
    local x, y = w[i - 15], w[i - 2]
    w[i] = tobit(w[i - 16] + bxor(ror(x, 7), ror(x, 18), rshift(x, 3)) + w[i - 7] + bxor(ror(y, 17), ror(y, 19), rshift(y, 10)))
  end
  local a, b, c, d, e, f, g, h = unpack(state)
  for i = 1, 64 do
    local t = h + bxor(ror(e, 6), ror(e, 11), ror(e, 25)) + bxor(band(e, f), band(bnot(e), g)) + ROUNDS[i] + w[i]
    local u = bxor(ror(a, 2), ror(a, 13), ror(a, 22)) + bxor(band(a, b), band(a, c), band(b, c))
    a, b, c, d, e, f, g, h = tobit(t + u), a, b, c, tobit(d + t), e, f, g
  end
  return {
    tobit(state[1] + a), tobit(state[2] + b), tobit(state[3] + c), tobit(state[4] + d),
    tobit(state[5] + e), tobit(state[6] + f), tobit(state[7] + g), tobit(state[8] + h),
  }
end

local function bytes(word)
  return string.char(band(rshift(word, 24), 255), band(rshift(word, 16), 255), band(rshift(word, 8), 255), band(word, 255))
end

-- The digest's bytes of `text` behind `before` bytes that have led to `state`.
local function finished(state, text, before)
  local length = before + #text
  local padded = text .. "\128" .. string.rep("\0", (55 - length) % 64) .. "\0\0\0\0" .. bytes(tobit(8 * length))
  for at = 1, #padded, 64 do
    state = compressed(state, padded, at)
  end
  local parts = {}
  for i = 1, 8 do
    parts[i] = bytes(state[i])
  end
  return table.concat(parts)
end

-- HMAC (RFC 2104) under `key`.
local function keyed(key)
  local short = #key > 64 and finished(START, key, 0) or key
  local block = short .. string.rep("\0", 64 - #short)
  local function padded(mask)
    return compressed(START, (string.gsub(block, ".", function(c)
      return string.char(bxor(string.byte(c), mask))
    end)), 1)
  end
  local inner, outer = padded(0x36), padded(0x5c)
  return function(text)
    return finished(outer, finished(inner, text, 64), 64)
  end
end

local mac = #KEY >= KEY_BYTES and keyed(KEY) or nil

local function hex(text, digits)
  return string.sub((string.gsub(text, ".", function(c)
    return string.format("%02x", string.byte(c))
  end)), 1, digits)
end

local KEY_ID = mac and hex(mac(""), 8)

-- What the routes hash: the first of these headers that is there and not empty.
local function named(names, headers)
  for _, name in ipairs(names) do
    local value = headers:get(name) or ""
    if value ~= "" then
      return value
    end
  end
end

local function listed(list, value)
  for _, item in ipairs(list) do
    if item == value then
      return true
    end
  end
  return false
end

function envoy_on_request(handle)
  local context, headers = handle:filterContext(), handle:headers()
  local path = string.match(headers:get(":path") or "", "^[^?]*")
  if not mac or headers:get(":method") ~= "POST" or not listed(context:get("paths"), path) then
    return
  end
  local user = named(context:get("headers"), headers)
  if not user then
    return
  end
  local metadata = handle:streamInfo():dynamicMetadata()
  metadata:set(NAMESPACE, "user", hex(mac(user), 32))
  metadata:set(NAMESPACE, "key", KEY_ID)
  metadata:set(NAMESPACE, "began", handle:timestamp())
  for _, name in ipairs({ "rollout", "canary", "split" }) do
    metadata:set(NAMESPACE, name, context:get(name))
  end
end

function envoy_on_response(handle)
  local seen = handle:streamInfo():dynamicMetadata():get(NAMESPACE)
  if not seen then
    return
  end
  local readable, head, tail = handle:headers():get("content-encoding") == nil, "", ""
  for chunk in handle:bodyChunks() do
    local text = chunk:length() > 0 and chunk:getBytes(0, chunk:length()) or ""
    if text ~= "" and head == "" then
      handle:streamInfo():dynamicMetadata():set(NAMESPACE, "first_ms", handle:timestamp() - seen.began)
      head = string.sub(text, 1, HEAD)
      local id = readable and string.match(head, '"id"%s*:%s*"([^"\\]+)"')
      if id then
        handle:streamInfo():dynamicMetadata():set(NAMESPACE, "response", id)
      end
    end
    tail = string.sub(tail .. string.sub(text, -TAIL), -TAIL)
  end
  for _, name in ipairs({ "prompt_tokens", "completion_tokens" }) do
    local count = readable and string.match(tail, '"usage"%s*:%s*{.*"' .. name .. '"%s*:%s*(%d+)')
    if count then
      handle:streamInfo():dynamicMetadata():set(NAMESPACE, name, tonumber(count))
    end
  end
end
