#!/usr/bin/env python3
"""Writes the playground's data.js: the core as WebAssembly, and every golden file. A page that is opened as a file can read
nothing but scripts, so both are in one, as gzip in base64."""

import base64
import gzip
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[2]


def packed(data):
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()


def main(core, out):
    providers = ROOT / "tests/providers"
    files = {}
    for path in sorted(providers.glob("*/golden/*.json")):
        golden = json.loads(path.read_text())
        # The page shows what the core makes of it, not what was expected.
        kept = {name: golden[name] for name in golden if name not in ("source", "provider_request", "answer")}
        files[f"{path.parts[-3]}/{path.stem}"] = kept
    keys = {"@" + path.name: path.read_text() for path in providers.glob("bbmsl/golden/private_key*")}
    examples = json.dumps({"keys": keys, "files": files}, ensure_ascii=False, separators=(",", ":"))
    data = {"core": packed(pathlib.Path(core).read_bytes()), "examples": packed(examples.encode())}
    pathlib.Path(out).write_text(f"const DATA = {json.dumps(data)};\n")


main(*sys.argv[1:])
