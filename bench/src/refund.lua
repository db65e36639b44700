-- The same job for Moyasar in Envoy's Lua filter: check the call, translate it, map the reply. `json` is dkjson, put in front
-- of this by the bench. What a peer cannot do here: Lua has no signature (so no BBMSL), and no memory that workers share (so
-- no guard). It takes keys that are UUIDs of version 4 only, since it has no SHA-256 to make one of another; and the library
-- does not tell a member that comes twice.

local api_key = "Bearer canary-moyasar-api-key"
local MAX_BODY = 65536
local EXPONENT = { SAR = 2, EUR = 2, USD = 2, GBP = 2, AED = 2, EGP = 2, QAR = 2, INR = 2, KWD = 3, BHD = 3, OMR = 3, JOD = 3,
  TND = 3, JPY = 0, KRW = 0 }
local MEMBERS = { provider = true, payment = true, amount = true, reason = true, reference = true }
local TITLES = {
  ["invalid-request"] = "The request is not valid",
  ["malformed-json"] = "The body is not JSON",
  ["unsupported-media-type"] = "The media type is not supported",
  ["method-not-allowed"] = "The method is not allowed",
  ["body-too-large"] = "The body is over 64 KiB",
  ["idempotency-key-missing"] = "The Idempotency-Key is missing",
  ["idempotency-key-invalid"] = "The Idempotency-Key is not valid",
  ["refund-declined"] = "The refund was declined",
  ["provider-rejected"] = "The provider refused the request",
  ["payment-not-found"] = "The payment was not found",
  ["provider-auth-failed"] = "The provider does not accept the credentials",
  ["provider-rate-limited"] = "The provider wants fewer calls",
  ["provider-error"] = "The provider failed",
  ["provider-reply-unreadable"] = "The provider's answer could not be read",
  ["provider-reply-mismatch"] = "The provider's answer is about another refund",
}

local decode, quote = json.decode, json.quotestring
local find, match, sub, format = string.find, string.match, string.sub, string.format

local function problem(status, code, outcome, retry, detail, extra)
  return format('{"type":"urn:refund-filter:%s","title":%s,"status":%d,"detail":%s,"code":"%s","outcome":"%s","retry":"%s"%s}',
    code, quote(TITLES[code]), status, quote(detail), code, outcome, retry, extra or "")
end

local function refuse(handle, status, code, detail, extra)
  local headers = { [":status"] = tostring(status), ["content-type"] = "application/problem+json" }
  if status == 405 then headers["allow"] = "POST" end
  handle:respond(headers, problem(status, code, "not_refunded", "no", detail, extra))
end

-- The number of characters of a text in UTF-8.
local function length(text)
  local _, continued = text:gsub("[\128-\191]", "")
  return #text - continued
end

local function text_of(value, most)
  return type(value) == "string" and value ~= "" and length(value) <= most
end

-- The amount in minor units, as digits: no number is made of it.
local function minor_units(value, currency)
  local digits = EXPONENT[currency]
  if type(value) ~= "string" or not digits then return nil end
  local whole, fraction = match(value, "^(%d+)%.(%d+)$")
  if not whole then
    whole, fraction = match(value, "^(%d+)$"), ""
    if not whole then return nil end
  end
  if #whole > 1 and sub(whole, 1, 1) == "0" or #fraction > digits then return nil end
  local units = match(whole .. fraction .. ("0"):rep(digits - #fraction), "^0*(.*)$")
  if units == "" or #units > 15 then return nil end
  return units
end

local function with_decimals(units, currency)
  local digits = EXPONENT[currency]
  if digits == 0 then return units end
  units = ("0"):rep(digits + 1 - #units) .. units
  return sub(units, 1, -digits - 1) .. "." .. sub(units, -digits)
end

local function encode_path(text)
  return (text:gsub("[^%w%-._~]", function(c) return format("%%%02X", c:byte()) end))
end

-- All faults at once, as the contract wants them.
local function check(call)
  local faults = {}
  local function fault(pointer, detail)
    faults[#faults + 1] = format('{"pointer":%s,"detail":%s}', quote(pointer), quote(detail))
  end
  for name in pairs(call) do
    if not MEMBERS[name] then fault("/" .. name, "This member is not known.") end
  end
  if call.provider ~= "moyasar" then fault("/provider", "This provider is not configured.") end
  local payment, amount = call.payment, call.amount
  if type(payment) ~= "table" then
    fault("/payment", "An object is needed.")
  else
    for name in pairs(payment) do
      if name ~= "id" and name ~= "reference" then fault("/payment/" .. name, "This member is not known.") end
    end
    if not text_of(payment.id, 128) or payment.id == "." or payment.id == ".." then
      fault("/payment/id", "A text of 1 to 128 characters is needed.")
    end
    if payment.reference ~= nil and not text_of(payment.reference, 64) then
      fault("/payment/reference", "A text of 1 to 64 characters is needed.")
    end
  end
  local units
  if type(amount) ~= "table" then
    fault("/amount", "An object with value and currency is needed.")
  else
    for name in pairs(amount) do
      if name ~= "value" and name ~= "currency" then fault("/amount/" .. name, "This member is not known.") end
    end
    units = minor_units(amount.value, amount.currency)
    if not units then fault("/amount/value", "A decimal text above zero with the currency's decimals is needed.") end
  end
  if call.reason ~= nil and not text_of(call.reason, 255) then
    fault("/reason", "A text of 1 to 255 characters is needed.")
  end
  if call.reference ~= nil and not text_of(call.reference, 64) then
    fault("/reference", "A text of 1 to 64 characters is needed.")
  end
  return faults, units
end

local KEEP = { ["x-request-id"] = true, ["traceparent"] = true, ["tracestate"] = true, ["b3"] = true,
  ["x-forwarded-proto"] = true, ["content-length"] = true, ["transfer-encoding"] = true }

function envoy_on_request(handle)
  local headers = handle:headers()
  local path = match(headers:get(":path"), "^[^?]*")
  if path ~= "/v1/refunds" then return end
  if headers:get(":method") ~= "POST" then
    return refuse(handle, 405, "method-not-allowed", "Nothing was sent. Ask for a refund with POST.")
  end
  local media = headers:get("content-type")
  if not media or not find(media:lower(), "^application/json%s*;?") or headers:get("content-encoding") then
    return refuse(handle, 415, "unsupported-media-type", "Nothing was sent. Send the refund as application/json.")
  end
  local key = headers:get("idempotency-key")
  if not key then
    return refuse(handle, 400, "idempotency-key-missing", "Nothing was sent. Give every refund a key of its own.")
  end
  key = (match(key, '^"(.*)"$') or key):lower()
  if headers:getNumValues("idempotency-key") ~= 1
    or not find(key, "^%x%x%x%x%x%x%x%x%-%x%x%x%x%-4%x%x%x%-[89ab]%x%x%x%-%x%x%x%x%x%x%x%x%x%x%x%x$") then
    return refuse(handle, 400, "idempotency-key-invalid", "Nothing was sent. Send one UUID of version 4.")
  end
  local body = handle:body()
  local size = body and body:length() or 0
  if size > MAX_BODY then
    return refuse(handle, 413, "body-too-large", "Nothing was sent. A refund call has 64 KiB at most.")
  end
  local text = size > 0 and body:getBytes(0, size) or ""
  local call, at, fault = decode(text, 1, json.null)
  if fault or type(call) ~= "table" or find(text, "%S", at) then
    return refuse(handle, 400, "malformed-json", "Nothing was sent. The body must be one JSON object.")
  end
  local faults, units = check(call)
  if #faults > 0 then
    return refuse(handle, 422, "invalid-request", "Nothing was sent. The faults stand under errors.",
      ',"errors":[' .. table.concat(faults, ",") .. "]")
  end

  headers = handle:headers()   -- waiting for the body has ended the life of the first
  local unwanted = {}
  for name in pairs(headers) do
    if sub(name, 1, 1) ~= ":" and not KEEP[name] and sub(name, 1, 5) ~= "x-b3-" then
      unwanted[#unwanted + 1] = name
    end
  end
  for i = 1, #unwanted do headers:remove(unwanted[i]) end
  headers:replace(":path", "/v1/orders/" .. encode_path(call.payment.id) .. "/refund")
  headers:replace(":authority", "pg.moyasar.com")
  headers:replace("content-type", "application/json")
  headers:replace("accept", "application/json")
  headers:replace("accept-encoding", "identity")
  headers:replace("user-agent", "refund-filter/0.1.0")
  headers:replace("authorization", api_key)
  body:setBytes(format('{"amount":%s,"transaction_id":"%s"}', units, key))
  handle:clearRouteCache()
  -- The reply's part of the script sees nothing of this one's, but for what Envoy keeps.
  handle:streamInfo():dynamicMetadata():set("refund", "call", {
    key = key, units = units, currency = call.amount.currency, id = call.payment.id,
    payment_reference = call.payment.reference, reason = call.reason, reference = call.reference,
  })
end

-- What a reply means: the status, the code or word, and what else to say.
local function outcome(status, reply, call)
  if status == 401 or status == 403 then return 502, "provider-auth-failed", "not_refunded", "same_key" end
  if status == 402 then return 422, "refund-declined", "not_refunded", "no" end
  if status == 404 then return 404, "payment-not-found", "not_refunded", "no" end
  if status == 409 then return 502, "provider-error", "unknown", "same_key" end
  if status == 429 then return 503, "provider-rate-limited", "not_refunded", "same_key" end
  if status >= 400 and status < 500 then return 422, "provider-rejected", "not_refunded", "no" end
  if status < 200 or status >= 300 then return 502, "provider-error", "unknown", "same_key" end
  if type(reply) ~= "table" or type(reply.transactions) ~= "table" then
    return 502, "provider-reply-unreadable", "unknown", "same_key"
  end
  if reply.id ~= call.id or reply.currency ~= call.currency then
    return 502, "provider-reply-mismatch", "unknown", "look_up"
  end
  for _, transaction in ipairs(reply.transactions) do
    if transaction.type == "refund" and transaction.id == call.key then
      if format("%d", transaction.amount) ~= call.units then
        return 502, "provider-reply-mismatch", "unknown", "look_up"
      end
      local word = transaction.status
      if word == "approved" then return 200, "succeeded", transaction end
      if word == "initiated" then return 202, "pending", transaction end
      if word == "declined" or word == "failed" then return 422, "refund-declined", "not_refunded", "no" end
      return 502, "provider-reply-unreadable", "unknown", "same_key"
    end
  end
  return 502, "provider-reply-unreadable", "unknown", "same_key"
end

local function member(name, value)
  return type(value) == "string" and format(',"%s":%s', name, quote(value)) or ""
end

function envoy_on_response(handle)
  local state = handle:streamInfo():dynamicMetadata():get("refund")
  local call = state and state["call"]
  if not call then return end
  local body = handle:body(true)
  local headers = handle:headers()
  local status = tonumber(headers:get(":status"))
  local size = body:length()
  local reply = size > 0 and decode(body:getBytes(0, size), 1, json.null) or nil
  local answer, word, about, retry = outcome(status, reply, call)
  local text, media
  if answer < 300 then
    media = "application/json"
    text = table.concat {
      '{"id":', quote(about.id), ',"provider":"moyasar","status":"', word, '","payment":{"id":', quote(call.id),
      member("reference", call.payment_reference), '},"amount":{"value":"', with_decimals(call.units, call.currency),
      '","currency":"', call.currency, '"}', member("reason", call.reason), member("reference", call.reference),
      member("provider_code", about.response_code), member("provider_message", about.message),
      member("created_at", about.created_at), "}",
    }
  else
    media = "application/problem+json"
    text = problem(answer, word, about, retry, TITLES[word], format(',"provider":{"name":"moyasar","status":%d%s}', status,
      member("message", type(reply) == "table" and reply.message or nil)))
  end
  local unwanted = {}
  for name in pairs(headers) do
    if sub(name, 1, 1) ~= ":" and name ~= "content-length" and name ~= "x-request-id" and name ~= "retry-after" then
      unwanted[#unwanted + 1] = name
    end
  end
  for i = 1, #unwanted do headers:remove(unwanted[i]) end
  headers:replace(":status", tostring(answer))
  headers:replace("content-type", media)
  body:setBytes(text)
end
