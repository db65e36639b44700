"""Holds openapi.yaml against a running gateway: `run.py TESTBED VALIDATOR SCHEMATHESIS GENERATOR`, the last three the folders of
Python packages that build.sh has got. The gateway is `serve`, on a port of its own; all that is written goes into a folder that
is gone afterwards."""

import contextlib
import copy
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
DOCUMENT = HERE.parent.parent / "openapi.yaml"
# The same calls in every run; another number makes others.
SEED = os.environ.get("SEED", "1")
# Nothing here is measured; this only ends what would hang.
PATIENCE = 300

# What the simulators know, so that refunds are made and not only refused: payments and a currency of each provider.
KNOWN = {
    "bog": (["order-7", "bog-card-gel", "bog-refused", "nowhere"], "GEL"),
    "moyasar": (
        [f"00000000-0000-4000-8000-00000000000{n}" for n in range(1, 4)]
        + ["0191f5a7-0000-7000-8000-000000000003"],
        "SAR",
    ),
    "begateway": (["order-7", "order-8", "1-failed", "1-pending", "1-error"], "USD"),
    "bbmsl": (["1000007", "1000008", "4923", "4926"], "HKD"),
}


def say(text: str) -> None:
    print(f"    {text}", flush=True)


def run(package: Path, program: str, *arguments: str, cwd: str, more: str = "") -> None:
    """Runs a program of a Python package that stands in a folder of its own."""
    environment = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join(filter(None, [str(package), more])),
        PYTHONWARNINGS="ignore",
        PATH=f"{package / 'bin'}{os.pathsep}{os.environ['PATH']}",
        NO_COLOR="1",
    )
    ended = subprocess.run(
        [sys.executable, program, *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if ended.returncode != 0:
        sys.exit(f"{ended.stdout}\n{Path(program).name} ended with {ended.returncode}.")


@contextlib.contextmanager
def gateway(testbed: str):
    """A gateway with its simulators: its URL, and the one of Envoy's admin."""
    with subprocess.Popen(
        [testbed, "serve", "--port", "0"], stdout=subprocess.PIPE, text=True
    ) as process:
        lines: queue.Queue = queue.Queue()

        def read() -> None:
            # To its end: a full pipe would stop the gateway.
            for line in process.stdout:
                lines.put(line)
            lines.put("")

        threading.Thread(target=read, daemon=True).start()
        try:
            urls = []
            for named in ["The gateway listens on ", "Envoy's admin: "]:
                line = lines.get(timeout=PATIENCE)
                while line and not line.startswith(named):
                    line = lines.get(timeout=PATIENCE)
                if not line:
                    sys.exit("`serve` did not start: its own words stand above.")
                urls.append(line.removeprefix(named).split()[0].rstrip("."))
            yield urls
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=PATIENCE)


def of_this_gateway(document: dict) -> dict:
    """The document with what this gateway's providers know in place of any name, payment and currency: of calls that are made
    up, hardly one would come to a provider."""
    document = copy.deepcopy(document)
    # On a listener that this gateway does not have.
    del document["paths"]["/v1/refunds/open"]
    schemas = document["components"]["schemas"]
    any_call = schemas["RefundCall"]
    any_call["properties"]["amount"] = schemas["Money"]
    any_call["properties"]["payment"] = schemas["Payment"]
    calls = []
    for provider, (payments, currency) in KNOWN.items():
        call = copy.deepcopy(any_call)
        call["properties"]["provider"] = {"type": "string", "const": provider}
        payment = call["properties"]["payment"]
        payment["required"] = ["id"]
        payment["properties"] = {"id": {"type": "string", "enum": payments}}
        amount = call["properties"]["amount"]["properties"]
        amount["currency"] = {"type": "string", "const": currency}
        amount["value"] = {"type": "string", "pattern": r"^[1-9](\.[0-9]{2})?$"}
        calls.append(call)
    schemas["RefundCall"] = {"oneOf": calls}
    query = document["components"]["parameters"]
    query["Provider"]["schema"] = {"type": "string", "enum": list(KNOWN)}
    payments = sorted({payment for known, _ in KNOWN.values() for payment in known})
    query["PaymentIdParameter"]["schema"] = {"type": "string", "enum": payments}
    query["PaymentIdParameter"]["required"] = True
    # A name that is made up, beside the right key, is rightly another refund's.
    for name in ["RefundId", "RefundReference"]:
        del query[name]
        for path in document["paths"].values():
            if "get" in path:
                path["get"]["parameters"].remove({"$ref": f"#/components/parameters/{name}"})
    # What has succeeded is looked up, too.
    responses = document["paths"]["/v1/refunds"]["post"]["responses"]
    responses["200"]["links"] = responses["202"]["links"]
    # Another key for every call, or most would be one that was used with another refund.
    del document["components"]["parameters"]["IdempotencyKey"]["example"]
    return document


def main() -> None:
    testbed = sys.argv[1]
    validator, schemathesis, generator = (Path(folder) for folder in sys.argv[2:5])
    with tempfile.TemporaryDirectory(prefix="refund-openapi-") as folder:
        say("openapi.yaml by OpenAPI's own schema")
        run(validator, str(validator / "bin/openapi-spec-validator"), str(DOCUMENT), cwd=folder)

        say("a client, generated")
        run(
            generator,
            str(generator / "bin/openapi-python-client"),
            *["generate", "--path", str(DOCUMENT), "--output-path", f"{folder}/refunds"],
            *["--meta", "none", "--fail-on-warning"],
            cwd=folder,
        )

        # schemathesis reads JSON as well, and this Python need not know YAML.
        sys.path.insert(0, str(schemathesis))
        import yaml

        document = of_this_gateway(yaml.safe_load(DOCUMENT.read_text(encoding="utf-8")))
        narrowed = Path(folder, "of-this-gateway.json")
        narrowed.write_text(json.dumps(document), encoding="utf-8")

        with gateway(testbed) as (url, admin):
            say("the client makes refunds and look-ups")
            run(generator, str(HERE / "client.py"), url, cwd=folder, more=folder)
            # Right calls of what there is, and what follows from their answers; then wrong calls of all kinds.
            for mode, described, phases in [
                ("positive", narrowed, "examples,coverage,fuzzing,stateful"),
                ("negative", DOCUMENT, "examples,coverage,fuzzing"),
            ]:
                say(f"schemathesis, {mode} calls, seed {SEED}")
                run(
                    schemathesis,
                    str(schemathesis / "bin/schemathesis"),
                    *["--config-file", str(HERE / "schemathesis.toml"), "run", str(described)],
                    *["--url", url, "--mode", mode, "--phases", phases, "--seed", SEED],
                    *["--exclude-path", "/v1/refunds/open"],
                    *["--max-examples", "25", "--request-timeout", "20", "--warnings", "off"],
                    cwd=folder,
                )
            came_through(admin)


def came_through(admin: str) -> None:
    """That what was refunded was more than what the client refunds: calls that are all refused would show nothing."""
    with urllib.request.urlopen(f"{admin}/stats?format=json&filter=wasmcustom.refund", timeout=PATIENCE) as page:
        stats = {stat["name"]: stat["value"] for stat in json.load(page)["stats"] if "value" in stat}
    for kind, outcome in [
        ("refund", "succeeded"),
        ("refund", "pending"),
        ("look_up", "succeeded"),
    ]:
        count = sum(
            value
            for name, value in stats.items()
            if f".kind.{kind}.outcome.{outcome}." in name
        )
        say(f"kind {kind}, {outcome}: {count}")
        if count < 4:
            sys.exit(f"Hardly any call came through: {json.dumps(stats, indent=1)}")


main()
