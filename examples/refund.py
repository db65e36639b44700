"""One refund, and every end that it can have: refund.py URL PROVIDER PAYMENT_ID VALUE CURRENCY
URL is the gateway's origin. REFUND_KEYS names the file that keeps the keys. The last answer goes to stdout.
Exit status: 0 refunded, 1 certainly not refunded, 2 wrong usage, 3 still open: run it again. Why so: docs/call-it.md"""
import contextlib, email.utils, fcntl, http.client, json, os, signal, sys, time, traceback, uuid
from urllib.parse import urlencode, urlsplit

RUN, CALL, PAUSE = 55, 35, 3  # Seconds that a run, a call and a pause have. The gateway gives a provider 30.
REPEATABLE = 23 * 3600  # Seconds for which a key may be sent again: no provider forgets one within 24 hours.
WITHOUT_KEYS = ("bbmsl",)  # Providers that know no keys: after no answer, look up and do not repeat.

def utc(seconds=0):  # So far from now, as the gateway writes times. Such texts sort by time.
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))

def save(path, keys):  # All or nothing, also where the process or the machine ends here.
    with open(path + ".new", "w") as file:
        json.dump(keys, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)
    os.fsync(os.open(os.path.dirname(path) or ".", os.O_RDONLY))

def out_of_time(*_): raise TimeoutError
def call(url, provider, seconds, *request):
    headers, answer = {}, None
    signal.setitimer(signal.ITIMER_REAL, max(0.001, min(seconds, CALL)))  # A socket's own timeout counts each read anew.
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
        connection = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}[url.scheme](url.netloc)
        connection.request(*request)
        reply = connection.getresponse()
        headers = reply.headers
        answer = json.loads(reply.read())
    signal.setitimer(signal.ITIMER_REAL, 0)
    ours = isinstance(answer, dict) and ("outcome" in answer or answer.get("provider") == provider)
    return headers, answer if ours else {}  # What a proxy says in the gateway's place is no answer.

def refund(path, url, provider, payment, value, currency):
    keys = json.load(open(path)) if os.path.exists(path) else {}
    name = " ".join((provider, payment, value, currency))
    kept = keys.setdefault(name, {"key": str(uuid.uuid4()), "sent": 0, "until": utc(REPEATABLE)})
    body = {"provider": provider, "payment": {"id": payment}, "amount": {"value": value, "currency": currency}}
    head = {"Content-Type": "application/json", "Idempotency-Key": kept["key"]}
    query = urlencode({"provider": provider, "payment_id": payment, "key": kept["key"]})
    by_key = "look_up" if provider in WITHOUT_KEYS else "same_key"
    look = kept["sent"] > 0 and (by_key == "look_up" or utc() > kept["until"])
    end, wait, last, final = time.monotonic() + RUN, 0, None, False
    while not final and time.monotonic() + wait < end:
        time.sleep(wait)
        kept["sent"] += not look
        save(path, keys)  # Before the call: a run that is killed from here on may have refunded.
        request = ("GET", "/v1/refunds?" + query) if look else ("POST", "/v1/refunds", json.dumps(body), head)
        headers, answer = call(url, provider, end - time.monotonic(), *request)
        last = answer or last
        status, outcome, retry = answer.get("status"), answer.get("outcome"), answer.get("retry") if answer else by_key
        kept["until"] = min(kept["until"], answer.get("retry_until") or kept["until"])
        # Believed if no other call is open under the key: the gateway may have forgotten it. A replay is of the one before.
        sure = outcome == "not_refunded" and not look and kept["sent"] - (headers.get("Idempotency-Replayed") == "true") <= 1
        if sure or status == "failed":
            kept["sent"] = 0
        final = (status in ("succeeded", "failed") or retry == "no" and outcome == "unknown"
                 or retry in ("no", "corrected") and (sure or look))
        look = not (retry == "same_key" and (sure or (outcome == "not_refunded" if look else utc() < kept["until"])))
        after = headers.get("Retry-After", "")
        date = email.utils.parsedate_tz(after)
        wait = max(1, int(after) if after.isdecimal() else email.utils.mktime_tz(date) - time.time() if date else PAUSE)
    if not kept["sent"]:
        del keys[name]
    save(path, keys)
    print(json.dumps(last))
    return 0 if status == "succeeded" else 3 if kept["sent"] else 1

if len(sys.argv) != 6 or "REFUND_KEYS" not in os.environ:
    sys.exit(print(__doc__, file=sys.stderr) or 2)
try:
    lock = open(os.environ["REFUND_KEYS"] + ".lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # Two runs at once could make two keys.
    signal.signal(signal.SIGALRM, out_of_time)
    sys.exit(refund(os.environ["REFUND_KEYS"], urlsplit(sys.argv[1]), *sys.argv[2:]))
except Exception:  # Python's own exit status would be 1.
    traceback.print_exc()
    sys.exit(3)
