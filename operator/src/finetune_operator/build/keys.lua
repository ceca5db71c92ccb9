-- Admits who has an API key, for Envoy's Lua filter (LuaJIT; nothing beyond Lua 5.1 is used). The keys are lines of a mounted
-- file, "name key", read again every few seconds, so that a changed Secret needs no restart; while the file cannot be read those
-- that were last read hold. A router without the variable was made before keys were asked for, and goes on as it was until it is replaced. Where the file is, and which path needs no key, stands in the route configuration
-- (build/access.py).

local REQUIRED = os.getenv("FINETUNE_API_KEYS") ~= nil
local SECONDS = 5
local REFUSAL = '{"error":{"message":"%s","type":"invalid_request_error","param":null,"code":"invalid_api_key"}}'
local names, read = {}, nil -- key → name; when the file was last read

local function known(path)
  local now = os.time()
  if not read or now < read or now - read >= SECONDS then
    read = now
    local file = io.open(path, "r")
    if file then
      local found = {}
      for line in file:lines() do
        local name, key = string.match(line, "^%s*([^%s#]%S*)%s+(%S+)%s*$")
        if key then
          found[key] = name
        end
      end
      file:close()
      names = found
    end
  end
  return names
end

function envoy_on_request(handle)
  local context, headers = handle:filterContext(), handle:headers()
  if not REQUIRED or headers:get(":path") == context:get("open") then
    return
  end
  local scheme, key = string.match(headers:get("authorization") or "", "^(%S+)%s+(%S+)%s*$")
  if key and string.lower(scheme) == "bearer" and known(context:get("file"))[key] then
    return
  end
  local message = key and "Incorrect API key provided." or "You didn't provide an API key: send it as Authorization: Bearer KEY."
  handle:respond(
    { [":status"] = "401", ["content-type"] = "application/json", ["www-authenticate"] = "Bearer" },
    string.format(REFUSAL, message)
  )
end
