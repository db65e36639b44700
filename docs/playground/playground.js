"use strict";

// What stands in data.js: the core as WebAssembly, and the golden files; both gzip in base64.
const CORE = unpack(DATA.core).then((bytes) => WebAssembly.instantiate(bytes, {})).then(({instance}) => instance.exports);
const EXAMPLES = unpack(DATA.examples).then((bytes) => JSON.parse(new TextDecoder().decode(bytes)));

const TITLES = {bog: "Bank of Georgia", moyasar: "Moyasar", begateway: "beGateway", bbmsl: "BBMSL"};
const CONFIGURATION = {
  providers: {
    bog: {
      kind: "bog", base_url: "https://api.bog.ge/payments/v1", currencies: ["GEL"],
      token: {
        cluster: "bog-token", url: "https://oauth2.bog.ge/auth/realms/bog/protocol/openid-connect/token",
        client_id: "10001", client_secret: {inline: "throw-away-secret"},
      },
    },
    moyasar: {kind: "moyasar", base_url: "https://pg.moyasar.com", api_key: {inline: "sk_test_throw_away"}},
    begateway: {
      kind: "begateway", base_url: "https://api.begateway.com", shop_id: "361", secret_key: {inline: "throw-away-secret"},
      default_reason: "refund",
    },
    bbmsl: {
      kind: "bbmsl", base_url: "https://payapi.prod.bbmsl.com", merchant_id: 3, declined_codes: ["2002"],
      signing: {keys: [{id: "throw-away", private_key: {inline: "@private_key.pem"}}]},
    },
  },
};
const PAYMENTS = {
  bog: ["1004922", "GEL"], moyasar: ["0191f5a7-44a9-76c2-9fec-39709fdbf723", "SAR"], begateway: ["1-310b0da80b", "USD"],
  bbmsl: ["4922", "HKD"],
};
const START = {key: "return-4711", now: "", before: "[]", configuration: json(CONFIGURATION), token: "throw-away-token"};

const $ = (id) => document.getElementById(id);
// The token has no field of its own. `choice`: the reply that is made for whatever the call is; "": it is written by hand.
let token = START.token;
let choice = "";

function sample(provider) {
  const [id, currency] = PAYMENTS[provider];
  return json({provider, payment: {id}, amount: {value: "10.50", currency}, reason: "returned goods"});
}

async function unpack(base64) {
  const packed = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

function run(core, asked) {
  const bytes = new TextEncoder().encode(JSON.stringify(asked));
  const at = core.space(bytes.length);
  new Uint8Array(core.memory.buffer, at, bytes.length).set(bytes);
  const answer = core.run(at, bytes.length);
  const said = new Uint8Array(core.memory.buffer, core.answer_at(answer), core.answer_length(answer));
  const text = new TextDecoder().decode(said);
  core.drop_answer(answer);
  return JSON.parse(text);
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function query() {
  return /^\s*GET\s+[^?\s]*\??(\S*)/.exec($("call").value)?.[1];
}

function call() {
  return query() === undefined ? {key: $("key").value, body: $("call").value} : {query: query()};
}

function named() {
  return query() === undefined ? parsed($("call").value)?.provider : new URLSearchParams(query()).get("provider");
}

// What is in the field "Reply": nothing, a fault, a status line with headers and a body, or a body.
function reply(text) {
  const word = text.trim();
  if (word === "") return null;
  const fault = FAULTS[word.toLowerCase()];
  if (fault) return {fault};
  const [whole, status, lines] = /^\s*(?:HTTP(?:\/[\d.]+)?\s+)?(\d{3})\b[^\n]*((?:\n[^\n]+)*)(?:\n\n|\n?$)/.exec(text) ?? [];
  if (!status) return {status: 200, body: text};
  const headers = lines.split("\n").filter((line) => line.includes(":")).map((line) => {
    const colon = line.indexOf(":");
    return [line.slice(0, colon).trim(), line.slice(colon + 1).trim()];
  });
  return {status: Number(status), headers: Object.fromEntries(headers), body: text.slice(whole.length)};
}

function replyText({status, headers, body, fault}) {
  if (fault) return Object.keys(FAULTS).find((name) => FAULTS[name] === fault);
  const lines = Object.entries(headers ?? {}).map(([name, value]) => `${name}: ${value}\n`);
  return `HTTP ${status}\n${lines.join("")}\n${body}`;
}

function choices() {
  return REPLIES[$("provider").value][query() === undefined ? "refund" : "lookUp"];
}

// What a reply is made from: of the request where it is in there, else of the call, else of the refund that is looked up.
function facts(played) {
  const parameters = new URLSearchParams(query() ?? "");
  const first = parsed($("before").value)?.[0]?.call.body;
  const refund = parsed(query() === undefined ? $("call").value : first ?? "null") ?? {};
  const value = refund.amount?.value ?? "10.00";
  const inMinor = ["moyasar", "begateway"].includes($("provider").value);
  const sent = parsed(played.requests?.[0]?.body || "null");
  const inner = typeof sent?.request === "string" ? parsed(sent.request) : sent?.request ?? sent;
  return {
    payment: refund.payment?.id ?? parameters.get("payment_id") ?? "1", id: parameters.get("id"), key: played.provider_key,
    currency: refund.amount?.currency ?? PAYMENTS[$("provider").value][1],
    amount: inner?.amount ?? Number(inMinor ? value.replace(".", "") : value), major: String(Number(value)),
  };
}

function configuration(keys) {
  return $("configuration").value.replace(/"(@[\w.-]+)"/g, (text, name) => name in keys ? JSON.stringify(keys[name]) : text);
}

async function update() {
  const [core, examples] = await Promise.all([CORE, EXAMPLES]);
  const provider = named();
  const kind = parsed($("configuration").value)?.providers?.[provider]?.kind;
  if (kind in TITLES && kind !== $("provider").value) {
    $("provider").value = kind;
    await listExamples();
  }
  const asked = {
    configuration: configuration(examples.keys), now: $("now").value || new Date().toISOString(), token, call: call(),
    before: parsed($("before").value || "[]"), reply: null,
  };
  listChoices();
  if (choice in STATUSES) $("reply").value = STATUSES[choice];
  else if (choice in FAULTS) $("reply").value = choice;
  else if (choice) $("reply").value = choices()[choice](facts(run(core, asked)));
  asked.reply = reply($("reply").value);
  const played = run(core, asked);
  showRequest(played);
  showAnswer(played, asked);
  remember();
}

function listChoices() {
  const all = [...Object.keys(choices()), ...Object.keys(STATUSES), ...Object.keys(FAULTS)];
  if (choice && !all.includes(choice)) choice = Object.keys(choices())[0];
  $("choice").replaceChildren(new Option("as written below", ""), ...all.map((name) => new Option(name)));
  $("choice").value = choice;
}

async function listExamples() {
  const {files} = await EXAMPLES;
  const own = Object.keys(files).filter((path) => path.startsWith($("provider").value + "/"));
  const options = own.map((path) => new Option(files[path].name, path));
  $("example").replaceChildren(new Option(`none (${own.length} to open)`, ""), ...options);
}

function message(start, headers, body) {
  return element("pre", `${start}\n${headers.map(([name, value]) => `${name}: ${value}\n`).join("")}${body && "\n" + body}`);
}

function element(name, text) {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function showRequest({requests, faults}) {
  if (faults) {
    const list = faults.map(({pointer, detail}) => element("pre", `${pointer} ${detail}`));
    $("request").replaceChildren(element("strong", "The gateway does not take this configuration:"), ...list);
    return;
  }
  const sent = requests.map(({method, url, headers, body}) => message(`${method} ${url}`, headers, body));
  $("request").replaceChildren(...(sent.length ? sent : [element("p", "Nothing is sent.")]));
}

function showAnswer({requests, answer, faults}, asked) {
  $("next").replaceChildren();
  if (!answer) {
    $("answer").replaceChildren(element("p", faults ? "None." : "It waits for the reply."));
    return;
  }
  const body = parsed(answer.body);
  $("answer").replaceChildren(message(`HTTP ${answer.status}`, answer.headers, json(body)));
  const isLookUp = "query" in asked.call;
  const [look, headline, words] = advice(body, isLookUp);
  $("next").className = look;
  $("next").append(element("strong", headline), element("p", words));
  if (!requests.length && !asked.before.length) return;
  const refund = isLookUp ? asked.before[0]?.call : asked.call;
  const again = body.status === "pending" || ["same_key", "corrected"].includes(body.retry);
  if (refund && again) button("Make the refund call again", () => goOn(asked, refund));
  const query = refund && lookUpOf(refund);
  if (query && body.status !== "succeeded" && (body.status || body.outcome === "unknown")) button("Look it up", () => goOn(asked, {query}));
}

function button(text, act) {
  const made = element("button", text);
  made.type = "button";
  made.addEventListener("click", act);
  $("next").append(made);
}

function lookUpOf({key, body}) {
  const {provider, payment} = parsed(body) ?? {};
  const names = {provider, payment_id: payment?.id, payment_reference: payment?.reference, key};
  const known = Object.entries(names).filter(([, value]) => typeof value === "string");
  const parameters = new URLSearchParams(known);
  // A pending one has told its id.
  const id = parsed($("answer").textContent.split("\n\n")[1] ?? "null")?.id;
  if (id) parameters.set("id", id);
  return provider && String(parameters);
}

// Ten minutes later: what was asked is what the gateway remembers.
function goOn(asked, next) {
  const before = [...asked.before, {seconds_ago: 0, call: asked.call, reply: asked.reply}];
  $("before").value = json(before.map((one) => ({...one, seconds_ago: one.seconds_ago + 600})));
  $("call").value = next.query ? `GET /v1/refunds?${next.query}` : next.body;
  if (!next.query) $("key").value = next.key;
  choice = Object.keys(choices())[0];
  $("call").focus();
  update();
}

// How it looks, in short, and what to do.
function advice({status, outcome, retry, retry_until: until}, isLookUp) {
  const unknown = (words) => ["", "Money may have moved.", words + " Never use a new key."];
  const not = (words) => ["bad", "Not refunded.", words];
  if (status === "succeeded") return ["good", "Refunded.", "Nothing is left to do."];
  if (status === "failed") return not("It is final. A further attempt takes a new key.");
  if (status === "pending") return ["", "Accepted, not final.", "Keep the key, and look it up until it has succeeded or failed."];
  if (outcome === "unknown") {
    if (retry === "same_key") return unknown(`Make the same refund call again, with the same key${until ? `, before ${until}` : ""}.`);
    if (retry === "look_up") return unknown("Do not repeat it: look it up.");
    if (retry === "corrected") return unknown(`Correct the ${isLookUp ? "look-up" : "call"}, and send it with the same key.`);
    return unknown("Ask the provider.");
  }
  if (retry === "same_key") return not("Make the same refund call again, with the same key, after what Retry-After says or a few seconds.");
  if (retry === "corrected") return not("Correct the call, and send it with the same key.");
  return not("The key is spent. A further attempt takes a new one.");
}

// The page's state is its link.
function state() {
  const state = {key: $("key").value, now: $("now").value, before: $("before").value, configuration: $("configuration").value, token};
  const differs = Object.entries(state).filter(([name, value]) => value !== START[name]);
  const parts = new URLSearchParams({provider: $("provider").value});
  if ($("call").value !== sample($("provider").value)) parts.set("call", $("call").value);
  choice ? parts.set("choice", choice) : parts.set("reply", $("reply").value);
  differs.forEach(([name, value]) => parts.set(name, value));
  return "#" + parts;
}

let last = "";
function remember() {
  last = state();
  history.replaceState(null, "", last);
}

async function open() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const {files} = await EXAMPLES;
  const provider = parts.get("provider");
  $("provider").value = provider in TITLES ? provider : "bog";
  await listExamples();
  if (parts.get("example") in files) return openExample(parts.get("example"));
  for (const name of ["key", "now", "before", "configuration"]) $(name).value = parts.get(name) ?? START[name];
  token = parts.get("token") ?? START.token;
  $("call").value = parts.get("call") ?? sample($("provider").value);
  $("reply").value = parts.get("reply") ?? "";
  choice = parts.has("reply") ? "" : parts.get("choice") ?? Object.keys(choices())[0];
  return update();
}

async function openExample(path) {
  const {files} = await EXAMPLES;
  const {configured_as: name, provider, now, token: bearer, call: refund, look_up: lookUp, provider_reply: said} = files[path];
  $("provider").value = path.split("/")[0];
  await listExamples();
  $("example").value = path;
  $("configuration").value = json({providers: {[name]: provider}});
  $("now").value = now;
  token = bearer ?? "golden-access-token";
  $("key").value = refund?.idempotency_key ?? "";
  $("call").value = lookUp ? `GET /v1/refunds?${lookUp.query}` : json(refund.body);
  const past = lookUp?.remembered;
  const before = past && {
    seconds_ago: past.seconds_ago, call: {key: past.idempotency_key, body: json(past.body)}, reply: past.provider_reply ?? {fault: "timeout"},
  };
  $("before").value = json(before ? [before] : []);
  choice = "";
  $("reply").value = said ? replyText(said) : "";
  await update();
}

async function choose() {
  const provider = $("provider").value;
  const wasSample = Object.keys(PAYMENTS).some((name) => $("call").value === sample(name)) || $("example").value;
  const refund = parsed($("call").value);
  const isOwn = !wasSample && query() === undefined && refund && typeof refund === "object";
  $("call").value = isOwn ? json({...refund, provider}) : sample(provider);
  if (!parsed($("configuration").value)?.providers?.[provider]) {
    for (const name of ["key", "now", "before", "configuration"]) $(name).value = START[name];
    token = START.token;
  }
  if (!isOwn) $("before").value = START.before;
  choice = Object.keys(choices())[0];
  await listExamples();
  await update();
}

for (const [name, title] of Object.entries(TITLES)) $("provider").append(new Option(title, name));
$("faults").textContent = Object.keys(FAULTS).join(", ");
for (const id of ["key", "call", "configuration", "before", "now"]) $(id).addEventListener("input", update);
$("reply").addEventListener("input", () => { choice = ""; update(); });
$("choice").addEventListener("change", () => { choice = $("choice").value; update(); });
$("provider").addEventListener("change", choose);
$("example").addEventListener("change", () => $("example").value ? openExample($("example").value) : choose());
$("share").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(location.href);
    $("shared").textContent = "Copied.";
  } catch {
    $("shared").textContent = "The link is in the address bar.";
  }
});
window.addEventListener("hashchange", () => location.hash !== last && open());
open();
