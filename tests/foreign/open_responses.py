"""Open Responses' own compliance tests against this server: `python -m tests.foreign.open_responses`.

Needs git, npm and the network: the suite comes from its repository, and what it runs on (Bun, and zod) from npm. Every
test is run with the embedded model and with the fake engine; those that want a call of every model it is shown, with a
fake engine that calls. What we decline is in `declined.toml`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tests.foreign.suite import WORK, report, server

REPOSITORY = "https://github.com/openresponses/openresponses"
COMMIT = "92c12d96d7b61d6d15e2214daa5e9c6000ab6e1c"
"""Of 2026-07-15."""
NEEDS = ("bun@1", "zod@3")

CONFIGURATION = """
models:
  - name: peek
  - name: fake
    engine: fake
  - name: calls
    engine: fake
    options: {script: '[[fake: tool get_weather {"location": "San Francisco, CA"}]]'}
"""
CALLING = {"tool-calling", "tool-calling-streaming", "function-call-roundtrip"}


def fetch(folder: Path) -> Path:
    """The suite's folder."""
    suite = folder / "suite"
    if not (suite / "package.json").exists():
        subprocess.run(["git", "init", "--quiet", str(suite)], check=True)
        for command in (["fetch", "--quiet", "--depth", "1", REPOSITORY, COMMIT], ["checkout", "--quiet", COMMIT]):
            subprocess.run(["git", "-C", str(suite), *command], check=True)
    return suite


def install_needs(folder: Path) -> Path:
    """Gives Bun. `folder` is one in which the suite's modules are looked for."""
    bun = folder / "node_modules" / ".bin" / "bun"
    if not bun.exists():
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--no-save", "--prefix", str(folder)]
        subprocess.run([*install, *NEEDS], check=True)
    return bun


def run(bun: Path, suite: Path, url: str, model: str) -> dict[str, str]:
    """Test -> `passed`, `skipped`, or the first line of what went wrong."""
    command = [str(bun), "run", "bin/compliance-test.ts", "--base-url", f"{url}/v1", "--api-key", "none", "--json"]
    done = subprocess.run([*command, "--model", model], cwd=suite, capture_output=True, text=True, timeout=600)
    try:
        results = json.loads(done.stdout)["results"]
    except ValueError:
        sys.exit(f"the suite did not run:\n{done.stdout}\n{done.stderr}")
    return {r["id"]: "; ".join(r["errors"]) if r["status"] == "failed" else r["status"] for r in results}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, help="a checkout of the suite, in place of fetching it")
    args = parser.parse_args()
    folder = WORK / "open-responses"
    suite = args.suite.resolve() if args.suite is not None else fetch(folder)
    bun = install_needs(suite.parent)
    with server(CONFIGURATION, folder) as url:
        calls = run(bun, suite, url, "calls")
        results = {}
        for model in ("peek", "fake"):
            of_model = run(bun, suite, url, model) | {test: calls[test] for test in CALLING & calls.keys()}
            results |= {f"{model}/{test}": result for test, result in of_model.items()}
    return report("open-responses", results)


if __name__ == "__main__":
    sys.exit(main())
