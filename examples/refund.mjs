// One refund, and every end that it can have: node refund.mjs URL PROVIDER PAYMENT_ID VALUE CURRENCY
// URL is the gateway's origin. REFUND_KEYS names the file that keeps the keys. The last answer goes to stdout.
// Exit status: 0 refunded, 1 certainly not refunded, 2 wrong usage, 3 still open: run it again. Why so: docs/call-it.md
import { randomUUID } from "node:crypto";
import fs from "node:fs";
import { dirname } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
const [RUN, CALL, PAUSE] = [55, 35, 3]; // Seconds that a run, a call and a pause have. The gateway gives a provider 30.
const REPEATABLE = 23 * 3600; // Seconds for which a key may be sent again: no provider forgets one within 24 hours.
const WITHOUT_KEYS = ["bbmsl"]; // Providers that know no keys: after no answer, look up and do not repeat.
// So far from now, as the gateway writes times: such texts sort by time.
const utc = (seconds = 0) => `${new Date(Date.now() + seconds * 1000).toISOString().slice(0, 19)}Z`;
const isGone = (pid) => { try { return !process.kill(pid, 0); } catch (error) { return error.code === "ESRCH"; } };

function lock(path) { // Two runs at once could make two keys. Node has no locks that end with their process.
  if (fs.lstatSync(path, { throwIfNoEntry: false }) && isGone(Number(fs.readlinkSync(path)))) fs.unlinkSync(path);
  fs.symlinkSync(`${process.pid}`, path);
  process.on("exit", () => fs.unlinkSync(path));
}

function save(path, keys) { // All or nothing, also where the process or the machine ends here.
  fs.writeFileSync(`${path}.new`, JSON.stringify(keys, null, 1), { flush: true });
  fs.renameSync(`${path}.new`, path);
  fs.fsyncSync(fs.openSync(dirname(path), "r"));
}

async function call(url, provider, seconds, request) {
  let headers = new Headers(), answer;
  const signal = AbortSignal.timeout(Math.ceil(Math.max(0, Math.min(seconds, CALL) * 1000)));
  try {
    const reply = await fetch(url, { ...request, signal, redirect: "manual" });
    headers = reply.headers;
    answer = await reply.json();
  } catch {} // No answer, or not all of it.
  return [headers, answer?.outcome || answer?.provider === provider ? answer : undefined]; // Else it is a proxy's.
}

async function refund(path, origin, provider, payment, value, currency) {
  const keys = fs.existsSync(path) ? JSON.parse(fs.readFileSync(path, "utf8")) : {};
  const name = [provider, payment, value, currency].join(" ");
  const kept = (keys[name] ??= { key: randomUUID(), sent: 0, until: utc(REPEATABLE) });
  const body = JSON.stringify({ provider, payment: { id: payment }, amount: { value, currency } });
  const post = { method: "POST", body, headers: { "Content-Type": "application/json", "Idempotency-Key": kept.key } };
  const query = new URLSearchParams({ provider, payment_id: payment, key: kept.key });
  const byKey = WITHOUT_KEYS.includes(provider) ? "look_up" : "same_key";
  let look = kept.sent > 0 && (byKey === "look_up" || utc() > kept.until);
  const end = performance.now() + RUN * 1000;
  let wait = 0, last = null, status, final = false;
  while (!final && performance.now() + wait < end) {
    await sleep(wait);
    if (!look) kept.sent += 1;
    save(path, keys); // Before the call: if this run is killed from here on, the call may have refunded.
    const url = new URL(look ? `/v1/refunds?${query}` : "/v1/refunds", origin);
    const [headers, answer] = await call(url, provider, (end - performance.now()) / 1000, look ? {} : post);
    const { outcome, retry, retry_until } = (last = answer ?? last, answer ?? { retry: byKey });
    status = answer?.status;
    if (retry_until && retry_until < kept.until) kept.until = retry_until;
    // Believed if no other call is open under the key: the gateway may have forgotten it. A replay is of the one before.
    const sure = outcome === "not_refunded" && !look && kept.sent - (headers.get("Idempotency-Replayed") === "true") <= 1;
    if (sure || status === "failed") kept.sent = 0;
    final = ["succeeded", "failed"].includes(status) || (retry === "no" && outcome === "unknown")
      || (["no", "corrected"].includes(retry) && (sure || look));
    look = !(retry === "same_key" && (sure || (look ? outcome === "not_refunded" : utc() < kept.until)));
    const after = headers.get("Retry-After") ?? "";
    wait = Math.max(1000, /^\d+$/.test(after) ? after * 1000 : Date.parse(after) - Date.now() || PAUSE * 1000);
  }
  if (!kept.sent) delete keys[name];
  save(path, keys);
  console.log(JSON.stringify(last));
  return status === "succeeded" ? 0 : kept.sent ? 3 : 1;
}
const [path, refundOf] = [process.env.REFUND_KEYS, process.argv.slice(2)];
if (!path || refundOf.length !== 5) process.exit(console.error("refund.mjs URL PROVIDER PAYMENT_ID VALUE CURRENCY") ?? 2);
try {
  lock(`${path}.pid`); // A name of its own: the others lock a file, and leave it there.
  process.exit(await refund(path, ...refundOf));
} catch (error) { // Node's own exit status would be 1.
  console.error(error);
  process.exit(3);
}
