"""Open Responses' own compliance tests against this server: `python -m tests.foreign.open_responses.run`.

Needs git, npm and the network: the suite is cloned and its two needs (Bun, zod) are installed when this runs, into a
folder that is thrown away. Prints what became of every test and the counts; fails when a test failed that we do not
decline, or when one that we decline has begun to pass.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from sightline.api.app import create_app
from sightline.config import ModelConfig, Settings
from sightline.service import Service
from tests.api.serving import serving

SUITE = "https://github.com/openresponses/openresponses"
NEEDS = ("bun@1", "zod@3")

_NO_WEBSOCKETS = "this server speaks HTTP only; the same conversations go through previous_response_id"
DECLINED = {
    "websocket-response": _NO_WEBSOCKETS,
    "websocket-sequential-responses": _NO_WEBSOCKETS,
    "websocket-continuation": _NO_WEBSOCKETS,
    "websocket-reconnect-store-false-recovery": _NO_WEBSOCKETS,
    "websocket-previous-response-not-found": _NO_WEBSOCKETS,
    "websocket-failed-continuation-evicts-cache": _NO_WEBSOCKETS,
    "websocket-compact-new-chain": _NO_WEBSOCKETS,
    "file-input": "this server reads no files yet: an input_file is a 400 that says so",
}
"""Test and reason."""

WEATHER = '[[fake: tool get_weather {"location": "San Francisco, CA"}]]'
MODELS = (
    ModelConfig(name="peek"),
    ModelConfig(name="fake", engine="fake"),
    # A model that takes the weather for a matter of tools, as the suite expects of every model.
    ModelConfig(name="calls", engine="fake", options={"script": WEATHER}),
)
CALLING = {"tool-calling", "tool-calling-streaming", "function-call-roundtrip"}
"""Tests that only a model which calls tools can pass; the embedded one does not."""


def get_suite(folder: Path) -> Path:
    suite = folder / "suite"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", SUITE, str(suite)], check=True)
    return suite


def install_needs(folder: Path) -> Path:
    """Gives Bun. `folder` is one that modules are looked for in from the suite."""
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--no-save", "--prefix", str(folder), *NEEDS]
    subprocess.run(install, check=True)
    return folder / "node_modules" / ".bin" / "bun"


def run(bun: Path, suite: Path, url: str, model: str) -> dict[str, dict[str, Any]]:
    """By test: its result."""
    command = [str(bun), "run", "bin/compliance-test.ts", "--base-url", url, "--api-key", "none", "--model", model]
    done = subprocess.run([*command, "--json"], cwd=suite, capture_output=True, text=True, timeout=600)
    try:
        results = json.loads(done.stdout)["results"]
    except ValueError:
        sys.exit(f"The suite did not run:\n{done.stdout}\n{done.stderr}")
    return {result["id"]: result for result in results}


def report(model: str, results: dict[str, dict[str, Any]]) -> bool:
    """Whether all is as it should be."""
    counts: Counter[str] = Counter()
    good = True
    for test, result in results.items():
        status = result["status"]
        if test in DECLINED:
            good = good and status == "failed"
            status = "declined" if status == "failed" else f"{status}, though it is declined"
        elif status == "failed":
            good = False
        counts[status] += 1
        why = DECLINED.get(test, "; ".join(result.get("errors") or ()))
        print(f"{model:6} {status:9} {test}{': ' + why if why else ''}")
    print(f"{model:6} {len(results)} tests: {', '.join(f'{n} {status}' for status, n in sorted(counts.items()))}\n")
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, help="a checkout of the suite, in place of cloning it")
    arguments = parser.parse_args()
    settings = Settings(models=MODELS)
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        suite = get_suite(folder) if arguments.suite is None else arguments.suite.resolve()
        bun = install_needs(folder if arguments.suite is None else suite.parent)
        commit = subprocess.run(["git", "log", "-1", "--format=%h of %cs"], cwd=suite, capture_output=True, text=True)
        print(f"Open Responses {commit.stdout.strip() or '(no commit known)'}\n")
        with serving(create_app(Service(settings), settings, wait=True)) as port:
            url = f"http://127.0.0.1:{port}/v1"
            calling = run(bun, suite, url, "calls")
            for model in ("peek", "fake"):
                results = run(bun, suite, url, model)
                results |= {test: calling[test] for test in CALLING & calling.keys()}
                good = report(model, results) and good
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
