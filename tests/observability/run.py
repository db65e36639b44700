"""Holds observability/ together: `run.py PROGRAMS TESTBED [PICTURES]`, the folder that has prometheus and amtool, and the program
that plays calls and faults through a real gateway.

A Prometheus scrapes that gateway. What it has counted is what callers were told; every query of the dashboard and every rule finds
what was played. With PICTURES, more is played, and the dashboard's panels are drawn into that file."""

import contextlib
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "observability"
PROGRAMS = Path(sys.argv[1]).resolve()
TESTBED = Path(sys.argv[2]).resolve()
PICTURES = Path(sys.argv[3]).resolve() if len(sys.argv) > 3 else None
# Nothing here is measured; this only ends what would hang.
PATIENCE = 60
# The window of a rate in the dashboard; Grafana takes one by the interval of the scrapes.
WINDOW = "30s"
# Of listeners that are discovered; this gateway's is not.
ELSEWHERE = "envoy_listener_manager_lds_update_rejected"

INHIBITION = r"""source_matchers: \['alertname="(\w+)"'\]\s+target_matchers: \['alertname=~?"([\w|]+)"'\]\s+equal: \[(\w+)\]"""

faults = []


def hold(true: bool, sentence: str) -> None:
    if not true:
        faults.append(sentence)


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


@contextlib.contextmanager
def playing(*arguments: str):
    """A gateway: its admin's address, and what plays calls and gives what was told."""
    with subprocess.Popen([TESTBED, "play", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def line() -> str:
            said = process.stdout.readline().strip()
            return said or sys.exit("    the gateway did not play to its end: its own words stand above")

        def play() -> dict:
            process.stdin.write("begin\n")
            process.stdin.flush()
            return json.loads(line())

        yield line(), play
        # Its end closes its input, and with it the gateway.


def series(prometheus: str) -> dict:
    """What Prometheus has of the gateway and of the rules: the values of each label, by metric."""
    found: dict = {}
    for labels in ask(f"http://{prometheus}/api/v1/series", **{"match[]": '{__name__=~".*refund_.+|envoy_.+"}'})["data"]:
        metric = found.setdefault(labels.pop("__name__"), {})
        for label, value in labels.items():
            metric.setdefault(label, set()).add(value)
    return found


def names_and_values(where: str, query: str, known: dict) -> None:
    """A query of a metric or a label's value that nothing has never finds anything."""
    query = re.sub(r"\b(?:by|on) \([^)]*\)", "", query)
    selectors = re.findall(r"(?<![:\w])((?:provider:|instance:)?(?:refund|envoy)_[\w:]+)(?:\{([^}]*)\})?", query)
    hold(bool(selectors), f"{where}: no metric")
    for name, matchers in selectors:
        hold(name in known or name == ELSEWHERE, f"{where}: there is no metric {name}")
        for label, values in re.findall(r'(\w+)(?:=|!=|=~|!~)"([^"]*)"', matchers):
            for value in values.split("|") if "$" not in values else []:
                hold(value in known.get(name, {}).get(label, ()), f"{where}: {name} never has {label} {value}")


def test_cases() -> dict:
    """What each case expects, by its alert and the word that follows it: `fires`, or `is` (silent)."""
    case = r"(?ms)^- name: (\w+) (\w+) .*? exp_samples:(.*?)(?=^- name: |\Z)"
    texts = [path.read_text() for path in FOLDER.glob("*rules_test.yml")]
    return {(name, word): expected for text in texts for name, word, expected in re.findall(case, text)}


def rules(alerts: list, known: dict) -> None:
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
            names_and_values(f"docs/runbook.md, {name}", query, known)


def numbers(prometheus: str, query: str, *labels: str) -> Counter:
    """What a query finds above zero, by these labels."""
    found: Counter = Counter()
    for result in ask(f"http://{prometheus}/api/v1/query", query=query)["data"]["result"]:
        number = float(result["value"][1])
        if number > 0:
            found[tuple(result["metric"].get(label, "") for label in labels)] += number
    return found


def counted(prometheus: str, told: dict) -> None:
    """What was counted is what was told."""
    calls = Counter({tuple(labels): count for labels, count in told["calls"]})
    by_labels = ("provider", "kind", "outcome", "code", "replayed")
    replayed = sum(count for of, count in calls.items() if of[4] == "true")
    reused = sum(count for of, count in calls.items() if of[3] == "idempotency-key-reused")
    for query, labels, expected in [
        ("refund_calls_total", by_labels, calls),
        ("refund_token_fetches_total", ("result",), Counter({(result,): count for result, count in told["token_fetches"].items()})),
        ("refund_signatures_total", ("provider", "result"), Counter({("bbmsl", "ok"): told["signatures"]})),
        ('refund_guard_events_total{event=~"replayed|reused"}', ("event",), Counter({("replayed",): replayed, ("reused",): reused})),
        ('sum(refund_duration_milliseconds_count{phase="call"})', (), Counter({(): sum(calls.values())})),
        ("refund_memory_fallbacks_total", ("provider", "result"), Counter({(name, result): told["memory_fallbacks"] for name, result in (("moyasar", "alone"), ("bbmsl", "unavailable"))})),
        ('refund_memory_repeats_total{result=~"left|ok|dropped"}', ("result",), Counter({(result,): told["told_later"] for result in ("left", "ok")})),
        ("refund_open", ("provider", "state"), Counter({tuple(labels): count for labels, count in told["open"]})),
    ]:
        # The last scrape is a moment old, and Envoy adds up its histograms now and then.
        until = time.monotonic() + PATIENCE
        while (found := numbers(prometheus, query, *labels)) != expected and time.monotonic() < until:
            time.sleep(0.2)
        hold(found == expected, f"{query}: found {found - expected}, and not {expected - found}")


def dashboard(prometheus: str, told: dict, known: dict) -> list:
    """Every query finds something; gives the panels."""
    panels = json.loads((FOLDER / "grafana-dashboard.json").read_text())["panels"]
    hold(len({panel["id"] for panel in panels}) == len(panels), "grafana-dashboard.json: two panels have one id")
    for panel in panels:
        if panel["type"] == "row":
            continue
        defaults = panel["fieldConfig"]["defaults"]
        hold(bool(defaults["unit"] and defaults["thresholds"]["steps"] and panel["description"]), f"{panel['title']}: incomplete")
        for target in panel["targets"]:
            names_and_values(panel["title"], target["expr"], known)
            query = target["query"] = target["expr"].replace("$provider", ".*").replace("$__rate_interval", WINDOW)
            data = ask(f"http://{prometheus}/api/v1/query", query=query)
            found = data.get("data", {}).get("result")
            hold(bool(found), f"{panel['title']}: {data.get('error', 'nothing found')}: {query}")
    shown = {panel["title"]: panel["targets"][0]["query"] for panel in panels if panel["type"] != "row"}
    # By what each of these is drawn for, above zero, and what was told.
    calls = told["calls"]
    refunds = [labels for labels, _ in calls if labels[1] == "refund" and labels[4] == "false"]
    for title, label, expected in [
        ("Refunds a minute, by outcome", "outcome", {labels[2] for labels in refunds}),
        ("Refunds that ended unknown, of all in the last hour", "provider", {labels[0] for labels in refunds if labels[2] == "unknown" and labels[3] not in ("idempotency-key-reused", "memory-unavailable")}),
        ("Problems a minute, by code", "code", {labels[3] for labels, _ in calls if labels[3] != "none" and labels[4] == "false"}),
        ("Not reached, timed out, turned away", "code", {"provider-unreachable", "provider-timeout", "provider-rate-limited"}),
        ("Connections that failed, a minute", "envoy_cluster_name", {"moyasar"}),
        ("Token fetches a minute", "result", {"ok", "refused", "rate_limited"}),
        ("Our own faults a minute", "code", {"provider-auth-failed"}),
        ("Signatures a minute", "result", {"ok"}),
        ("Calls to the shared memory a minute", "result", {"ok", "again", "unanswered"}),
        ("Without the shared memory a minute, and not told yet", "result", {"alone", "unavailable"}),
        ("The provider's time", "provider", {"bbmsl", "begateway", "bog", "moyasar"}),
        ("Refunds that are unknown now", "provider", {"begateway"}),
    ]:
        found = {value for value, in numbers(prometheus, shown[title], label)}
        hold(found == expected, f"{title}: {found}, and {expected} were played")
    return panels


def main() -> None:
    prometheus = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory() as folder, playing("--rounds", "8" if PICTURES else "1") as (admin, play):
        # The files that ship, but faster, and without the Alertmanager, which may be a real one.
        for name in ("prometheus.yml", "refund.rules.yml"):
            text = (FOLDER / name).read_text().replace("127.0.0.1:9901", admin)
            text = text.replace('["127.0.0.1:9093"]', "[]")
            Path(folder, name).write_text(re.sub(r"interval: \d+[sm]", "interval: 1s", text))
        started = [
            PROGRAMS / "prometheus",
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={prometheus}",
        ]
        with running(*started):
            until = time.monotonic() + PATIENCE
            while not numbers(prometheus, "refund_build_info") and time.monotonic() < until:
                time.sleep(0.2)
            began = time.time()
            told = play()
            counted(prometheus, told)
            known = series(prometheus)
            groups = ask(f"http://{prometheus}/api/v1/rules")["data"]["groups"]
            of_all = sorted((rule for group in groups for rule in group["rules"]), key=lambda rule: rule["name"])
            order = re.findall(r"alert: (\w+)", (FOLDER / "refund.rules.yml").read_text())
            alerts = sorted((rule for rule in of_all if rule["type"] == "alerting"), key=lambda rule: order.index(rule["name"]))
            for rule in of_all:
                names_and_values(rule["name"], rule["query"], known)
                hold(rule["health"] == "ok", f"{rule['name']}: {rule['health']} {rule.get('lastError', '')}")
            rules(alerts, known)
            panels = dashboard(prometheus, told, known)
            if PICTURES and not faults:
                from pictures import draw

                draw(PICTURES, panels, began, lambda query: ask(
                    f"http://{prometheus}/api/v1/query_range", query=query, start=began, end=time.time(), step="2")["data"]["result"])
    for fault in faults:
        print(f"    {fault}", file=sys.stderr)
    if faults:
        sys.exit(1)
    queries = sum(len(panel.get("targets", ())) for panel in panels)
    calls = sum(count for _, count in told["calls"])
    print(f"    {len(alerts)} alerts and {queries} queries of the dashboard, over {calls} calls")


main()
