-- The user who is named in a request's JSON body, for Envoy's Lua filter (LuaJIT; nothing beyond Lua 5.1 is used).
--
-- What it is to look for stands in the route configuration (build/identity.py): the sources of an identity in their order, the
-- name of the header that it writes, and how many bytes of a body it reads. A source before which a header of the list is there
-- is not asked. The body is passed on as it came. Whatever cannot be read names nobody and fails nothing: a body that is too
-- long, whose length is not said, that is no JSON object, or in which the field is no text.

local STEPS = 100000 -- of the search through one body: strings, brackets, escapes; it blocks the router for some 20 ms at most
local LONGEST = 1024 -- bytes of a name
local QUOTE, OPEN_OBJECT, OPEN_LIST = string.byte('"'), string.byte("{"), string.byte("[")
local SHORT = { ['"'] = '"', ["\\"] = "\\", ["/"] = "/", b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }

local function utf8(code)
  if code >= 0xD800 and code <= 0xDFFF then
    code = 0xFFFD -- half of a pair
  end
  if code < 0x80 then
    return string.char(code)
  elseif code < 0x800 then
    return string.char(0xC0 + math.floor(code / 0x40), 0x80 + code % 0x40)
  elseif code < 0x10000 then
    return string.char(0xE0 + math.floor(code / 0x1000), 0x80 + math.floor(code / 0x40) % 0x40, 0x80 + code % 0x40)
  end
  return string.char(
    0xF0 + math.floor(code / 0x40000), 0x80 + math.floor(code / 0x1000) % 0x40, 0x80 + math.floor(code / 0x40) % 0x40, 0x80 + code % 0x40
  )
end

-- The UTF-16 unit whose four digits begin at `at`, or nil.
local function unit(raw, at)
  return tonumber(string.match(raw, "^%x%x%x%x", at) or "", 16)
end

-- A string without its escapes; nil where one is none.
local function unescaped(raw)
  local parts, at = {}, 1
  while true do
    local from = string.find(raw, "\\", at, true)
    parts[#parts + 1] = string.sub(raw, at, (from or 0) - 1)
    if not from then
      return table.concat(parts)
    end
    local kind = string.sub(raw, from + 1, from + 1)
    at = from + 2
    local part = SHORT[kind]
    if kind == "u" then
      local code = unit(raw, at)
      if not code then
        return nil
      end
      at = at + 4
      local low = code >= 0xD800 and code < 0xDC00 and string.sub(raw, at, at + 1) == "\\u" and unit(raw, at + 2)
      if low and low >= 0xDC00 and low < 0xE000 then
        code, at = 0x10000 + (code - 0xD800) * 0x400 + (low - 0xDC00), at + 6
      end
      part = utf8(code)
    end
    if not part then
      return nil
    end
    parts[#parts + 1] = part
  end
end

-- A reader of `text`: `closing(at)` is where the string ends whose first character is at `at`, and whether it has escapes;
-- `past(at)` is where it goes on behind the object or list that begins at `at`. Both are nil where there is no end.
local function reader(text)
  local left = STEPS

  local function closing(at)
    local escaped = false
    while left > 0 do
      left = left - 1
      local found = string.find(text, '["\\]', at)
      if not found then
        return nil
      elseif string.byte(text, found) == QUOTE then
        return found, escaped
      end
      escaped, at = true, found + 2
    end
  end

  local function past(at)
    local depth = 0
    while left > 0 do
      left = left - 1
      local found = string.find(text, '["%[%]{}]', at)
      local byte = found and string.byte(text, found)
      if not found then
        return nil
      elseif byte == QUOTE then
        found = closing(found + 1)
        if not found then
          return nil
        end
      elseif byte == OPEN_OBJECT or byte == OPEN_LIST then
        depth = depth + 1
      else
        depth = depth - 1
      end
      at = found + 1
      if depth == 0 then
        return at
      end
    end
  end

  return closing, past
end

-- The fields of a JSON object that are texts, of those in `wanted` (name → true); of a name that comes twice the last one counts.
-- What is inside its values is not checked: that is for the server. nil where it is no object.
local function texts(text, wanted)
  local closing, past = reader(text)
  local found = {}
  local at = string.match(text, "^%s*{%s*()")
  if at and string.find(text, "^}%s*$", at) then
    return found
  end
  while at do
    local name_at = string.match(text, '^"()', at)
    local name_end, escaped = nil, nil
    if name_at then
      name_end, escaped = closing(name_at)
    end
    at = name_end and string.match(text, "^%s*:%s*()", name_end + 1)
    if not at then
      return nil
    end
    local name = string.sub(text, name_at, name_end - 1)
    name = escaped and unescaped(name) or name
    local value, byte = nil, string.byte(text, at)
    if byte == QUOTE then
      local value_end, value_escaped = closing(at + 1)
      if value_end and wanted[name] then
        value = string.sub(text, at + 1, value_end - 1)
        value = value_escaped and unescaped(value) or (not value_escaped and value or nil)
      end
      at = value_end and value_end + 1
    elseif byte == OPEN_OBJECT or byte == OPEN_LIST then
      at = past(at)
    else
      at = string.match(text, "^[%w+.-]+()", at)
    end
    if wanted[name] then
      found[name] = value
    end
    local separator, after = string.match(text, "^%s*([,}])%s*()", at or #text + 1)
    if separator == "}" and after > #text then
      return found
    end
    at = separator == "," and after
  end
  return nil
end

-- As a header can carry it: without spaces around it, as a header has none; control characters in the way of a URL. Empty: nobody, and
-- also what is longer than a name is.
local function printable(value)
  local from, to = string.find(value, "[^ \t]") or 1, #value
  while to >= from and string.find(string.sub(value, to, to), "[ \t]") do
    to = to - 1
  end
  if to - from >= LONGEST then
    return ""
  end
  return (string.gsub(string.sub(value, from, to), "%c", function(c)
    return string.format("%%%02X", string.byte(c))
  end))
end

-- The body fields that are asked for: those before the first header of the list that the request has.
local function asked(sources, headers)
  local names = {}
  for _, source in ipairs(sources) do
    if source.header then
      if (headers:get(source.header) or "") ~= "" then
        break
      end
    else
      names[#names + 1] = source.bodyField
    end
  end
  return names
end

function envoy_on_request(handle)
  local context, headers = handle:filterContext(), handle:headers()
  local names, to = asked(context:get("sources") or {}, headers), context:get("to") -- {}: no route takes it
  local length = tonumber(headers:get("content-length") or "")
  if #names == 0 or headers:get(":method") ~= "POST" or not length or length < 1 or length > context:get("bytes") then
    return
  end
  local wanted = {}
  for _, name in ipairs(names) do
    wanted[name] = true
  end
  local body = handle:body() -- waits; what was got of the handle before is void now
  local found = body and texts(body:getBytes(0, body:length()), wanted) or {}
  for _, name in ipairs(names) do
    local value = printable(found[name] or "")
    if value ~= "" then
      handle:headers():add(to, value)
      return
    end
  end
end
