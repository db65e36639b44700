"""Holds observability/ together: `run.py FOLDER`, the folder that has prometheus and amtool.

A Prometheus scrapes a page with every series of the filter, and every query of the dashboard must
find something there."""

import contextlib
import itertools
import json
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "observability"
PROGRAMS = Path(sys.argv[1]).resolve()
# Nothing here is measured; this only ends what would hang.
PATIENCE = 60

CODES = re.findall(r'\(\s*"([a-z-]+)",\s*\d{3},', (ROOT / "src/problem.rs").read_text())
OUTCOMES = ["succeeded", "pending", "failed", "not_refunded", "unknown"]
EVENTS = "no_room evicted in_flight reused payment_taken replayed late concluded changed overtaken".split()
PROVIDERS = ["bbmsl", "bog", "begateway", "moyasar"]
DURATION = {"provider": PROVIDERS, "phase": ["call", "provider", "token", "signature"]}
CLUSTER = {"envoy_cluster_name": PROVIDERS}
# What the filter exports, and what is used of Envoy's own: counters grow with time.
COUNTERS = {
    "refund_calls_total": {
        "provider": [*PROVIDERS, "none"],
        "kind": ["refund", "look_up", "preview"],
        "outcome": OUTCOMES,
        "code": [*CODES, "client-gone", "none"],
        "replayed": ["true", "false"],
    },
    "refund_duration_milliseconds_bucket": {**DURATION, "le": ["10", "100", "+Inf"]},
    "refund_duration_milliseconds_sum": DURATION,
    "refund_duration_milliseconds_count": DURATION,
    "refund_guard_events_total": {"event": EVENTS},
    "refund_token_fetches_total": {"provider": ["bog"], "result": ["ok", "refused", "rate_limited", "unreachable"]},
    "refund_misrouted_total": {"provider": PROVIDERS},
    "refund_signatures_total": {"provider": ["bbmsl"], "signer": ["vm", "host", "transit"], "result": ["ok", "failed"]},
    "refund_configurations_total": {"result": ["accepted", "refused"]},
    "envoy_http_downstream_rq_xx": {"envoy_response_code_class": ["4"]},
    "envoy_cluster_upstream_cx_connect_fail": CLUSTER,
    "envoy_cluster_ssl_connection_error": CLUSTER,
    "envoy_cluster_ssl_fail_verify_error": CLUSTER,
    "envoy_cluster_ssl_fail_verify_san": CLUSTER,
    "envoy_wasm_refund_filter_vm_reload_success": {},
    "envoy_wasm_refund_filter_vm_reload_failure": {},
    "envoy_wasm_refund_filter_vm_reload_backoff": {},
    "envoy_listener_manager_lds_update_rejected": {},
    "envoy_extension_config_discovery_http_filter_refund_filter_config_fail": {},
}
GAUGES = {
    "refund_open": {"provider": PROVIDERS, "state": ["unknown", "pending"]},
    "refund_guard_entries": {},
    "refund_guard_capacity": {},
    "refund_signing_key_not_after_timestamp_seconds": {"provider": ["bbmsl"]},
    "refund_build_info": {"version": ["0.1.0"]},
    "envoy_server_uptime": {},
}
LABELS = {
    label: {value for metric in (COUNTERS | GAUGES).values() for value in metric.get(label, [])}
    for label in ("kind", "outcome", "code", "replayed", "event", "state", "phase", "result", "signer")
}

INHIBITION = r"""source_matchers: \['alertname="(\w+)"'\]\s+target_matchers: \['alertname=~?"([\w|]+)"'\]\s+equal: \[(\w+)\]"""

faults = []


def hold(true: bool, sentence: str) -> None:
    if not true:
        faults.append(sentence)


class Page(BaseHTTPRequestHandler):
    """What a gateway shows at /stats/prometheus."""

    def do_GET(self) -> None:
        lines = []
        for kind, metrics, value in (("counter", COUNTERS, time.time() % 1e6), ("gauge", GAUGES, 1e6)):
            for name, labels in metrics.items():
                lines.append(f"# TYPE {name} {kind}")
                for values in itertools.product(*labels.values()):
                    pairs = ",".join(f'{label}="{text}"' for label, text in zip(labels, values))
                    lines.append(f"{name}{{{pairs}}} {value}")
        self.send_response(200)
        self.end_headers()
        self.wfile.write("\n".join([*lines, ""]).encode())

    def log_message(self, *_: object) -> None:
        pass


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def ask(url: str, **parameters: str) -> dict:
    """A call to Prometheus, which may still be starting."""
    until = time.monotonic() + PATIENCE
    url += "?" + urllib.parse.urlencode(parameters)
    while True:
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            if error.code != 503:
                return json.loads(error.read())
        except OSError:
            pass
        if time.monotonic() > until:
            sys.exit(f"    {url} does not answer")
        time.sleep(0.2)


@contextlib.contextmanager
def running(*command: object):
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


def names_and_values(where: str, query: str) -> None:
    """A query of a metric or a label's value that the filter does not have never finds anything."""
    without_labels = re.sub(r"\{[^}]*\}|\b(?:by|on) \([^)]*\)", "", query)
    for name in re.findall(r"(?<![:\w])(?:refund|envoy)_\w+", without_labels):
        hold(name in COUNTERS | GAUGES, f"{where}: there is no metric {name}")
    for label, values in re.findall(r'(\w+)(?:=|!=|=~|!~)"([^"]*)"', query):
        for value in values.split("|") if label in LABELS else []:
            hold(value in LABELS[label], f"{where}: {label} is never {value}")


def test_cases() -> dict:
    """What each case expects, by its alert and the word that follows it: `fires`, or `is` (silent)."""
    case = r"(?ms)^- name: (\w+) (\w+) .*? exp_samples:(.*?)(?=^- name: |\Z)"
    texts = [path.read_text() for path in FOLDER.glob("*rules_test.yml")]
    return {(name, word): expected for text in texts for name, word, expected in re.findall(case, text)}


def rules(alerts: list) -> None:
    """Every alert has labels, words, an entry in the runbook, a route, and a case of both ends."""
    names = [alert["name"] for alert in alerts]
    cases = test_cases()
    hold(len(cases) == 2 * len(names), "the tests have two cases for each alert and no others")
    for alert in alerts:
        name, words, severity = alert["name"], alert["annotations"], alert["labels"].get("severity")
        hold(severity in ("page", "ticket"), f"{name}: severity is page or ticket")
        hold(set(words) == {"summary", "description", "runbook_url"}, f"{name}: which annotations")
        hold(words.get("runbook_url") == f"docs/runbook.md#{name.lower()}", f"{name}: runbook_url")
        fires = cases.get((name, "fires"), "")
        for label in (f'alertname="{name}"', 'alertstate="firing"', f'severity="{severity}"'):
            hold(label in fires, f"{name}: no case in which it fires with {label}")
        for label in re.findall(r"\$labels\.(\w+)", " ".join(words.values())):
            hold(f'{label}="' in fires, f"{name}: its words name {label}, which it does not have")
        hold(cases.get((name, "is"), "").strip() == "[]", f"{name}: no case in which it is silent")
        routed = [PROGRAMS / "amtool", "config", "routes", "test", f"--verify.receivers={severity}"]
        routed += [f"--config.file={FOLDER / 'alertmanager.yml'}", f"alertname={name}", f"severity={severity}"]
        hold(subprocess.run(routed, capture_output=True).returncode == 0, f"{name}: not routed to {severity}")

    # Two alerts that both lack the label of `equal` are equal to Alertmanager: one would silence
    # the other whatever they are about.
    routing = (FOLDER / "alertmanager.yml").read_text()
    inhibitions = re.findall(INHIBITION, routing)
    hold(len(inhibitions) == routing.count("source_matchers"), "alertmanager.yml: an inhibition that is not understood")
    for source, targets, label in inhibitions:
        for name in (source, *targets.split("|")):
            hold(f'{label}="' in cases.get((name, "fires"), ""), f"alertmanager.yml: no {name} by {label}")

    entries = re.findall(r"(?ms)^### (\w+)\n(.*?)(?=^##|\Z)", (ROOT / "docs/runbook.md").read_text())
    hold([name for name, _ in entries] == names, "docs/runbook.md: an entry for each alert, in their order")
    for name, entry in entries:
        for part in ("**Money.**", "**Look.**", "**Do.**"):
            hold(part in entry, f"docs/runbook.md, {name}: no {part}")
        for query in re.findall(r"`([^`]*(?:refund|envoy)_\w+[{\[][^`]*)`", entry):
            names_and_values(f"docs/runbook.md, {name}", query)


def dashboard(prometheus: str) -> int:
    panels = json.loads((FOLDER / "grafana-dashboard.json").read_text())["panels"]
    hold(len({panel["id"] for panel in panels}) == len(panels), "grafana-dashboard.json: two panels have one id")
    queries = 0
    for panel in panels:
        if panel["type"] == "row":
            continue
        defaults = panel["fieldConfig"]["defaults"]
        hold(bool(defaults["unit"] and defaults["thresholds"]["steps"] and panel["description"]), f"{panel['title']}: incomplete")
        for target in panel["targets"]:
            names_and_values(panel["title"], target["expr"])
            query = target["expr"].replace("$provider", ".*").replace("$__rate_interval", "5m")
            until = time.monotonic() + PATIENCE
            while not (data := ask(f"http://{prometheus}/api/v1/query", query=query)).get("data", {}).get("result"):
                if data["status"] == "error" or time.monotonic() > until:
                    hold(False, f"{panel['title']}: {data.get('error', 'nothing found')}: {query}")
                    break
                time.sleep(0.5)
            queries += 1
    return queries


def main() -> None:
    page = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=page.serve_forever, daemon=True).start()
    prometheus = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory() as folder:
        # The files that ship, but faster, and without the Alertmanager, which may be a real one.
        for name in ("prometheus.yml", "refund.rules.yml"):
            text = (FOLDER / name).read_text().replace("127.0.0.1:9901", f"127.0.0.1:{page.server_port}")
            text = text.replace('["127.0.0.1:9093"]', "[]")
            Path(folder, name).write_text(re.sub(r"interval: \d+[sm]", "interval: 1s", text))
        started = [
            PROGRAMS / "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={prometheus}",
        ]
        with running(*started):
            groups = ask(f"http://{prometheus}/api/v1/rules")["data"]["groups"]
            of_all = sorted((rule for group in groups for rule in group["rules"]), key=lambda rule: rule["name"])
            order = re.findall(r"alert: (\w+)", (FOLDER / "refund.rules.yml").read_text())
            alerts = sorted((rule for rule in of_all if rule["type"] == "alerting"), key=lambda rule: order.index(rule["name"]))
            for rule in of_all:
                names_and_values(rule["name"], rule["query"])
            rules(alerts)
            queries = dashboard(prometheus)
    for fault in faults:
        print(f"    {fault}", file=sys.stderr)
    if faults:
        sys.exit(1)
    print(f"    {len(alerts)} alerts, {queries} queries of the dashboard")


main()
