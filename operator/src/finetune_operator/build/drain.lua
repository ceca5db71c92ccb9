-- May a router that is taken away end? For Envoy's Lua filter (LuaJIT; nothing beyond Lua 5.1 is used). It may when it was first asked
-- `seconds` ago, and Envoy's own statistics (`active`, a path of admin) say that no request of a user is under way. What cannot be
-- told is no. When it was first asked stands in the header that `since` names (build/drain.py).

local function active(handle, path)
  local headers, body = handle:httpCall("admin", { [":method"] = "GET", [":path"] = path, [":authority"] = "admin" }, "", 1000)
  local sum = nil
  if headers[":status"] == "200" then
    for count in string.gmatch(body or "", "} (%d+)") do
      sum = (sum or 0) + tonumber(count)
    end
  end
  return sum
end

function envoy_on_request(handle)
  local context = handle:filterContext()
  local since = tonumber(handle:headers():get(context:get("since")) or "")
  if not since or os.time() - since < context:get("seconds") then
    return handle:respond({ [":status"] = "503" }, "users may still come\n")
  end
  local count = active(handle, context:get("active"))
  handle:respond({ [":status"] = count == 0 and "200" or "503" }, (count or "an unknown number of") .. " requests are under way\n")
end
