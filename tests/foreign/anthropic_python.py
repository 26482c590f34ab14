"""anthropic-python's own request tests, pointed at our server: `python -m tests.foreign.anthropic_python`.

Like OpenAI's, they were written for a mock of a whole provider. What we answer with an error by intent is in
`declined.toml`. The suite comes from the SDK's source distribution.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from tests.foreign.suite import WORK, fetch_source, read_junit, report, server, virtual_environment

VERSION = "2.12.0"
CONFIGURATION = """
models:
  - name: claude-opus-5-5
    engine: fake
    aliases: [claude-1.3, model_id, after_id, before_id]
"""
"""The names that the tests ask for; after_id and before_id are models before and after which pages begin."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="pytest's -k: these tests alone, nothing judged")
    args = parser.parse_args()
    folder = WORK / "anthropic-python"
    source = fetch_source("anthropic", VERSION, folder)
    python = virtual_environment(
        folder / "venv",
        [
            f"anthropic[aiohttp]=={VERSION}",
            "dirty-equals",
            "http-snapshot",
            "inline-snapshot",
            "opentelemetry-sdk",
            "pytest>=9.0.3",
            "pytest-asyncio>=1.4",
            "pytest-timeout>=2.4",
            "respx",
            "rich>=13.7",
            "standardwebhooks",
        ],
    )
    results = folder / "results.xml"
    with server(CONFIGURATION, folder) as url:
        command = [str(python), "-m", "pytest", "tests/api_resources", "-q", "--timeout", "30", "--tb", "line"]
        command += ["-o", "addopts=", "-p", "tests._alias_httpx", "-p", "no:cacheprovider", f"--junitxml={results}"]
        command += ["-k", args.only] if args.only else []
        environment = {"TEST_API_BASE_URL": url, "PATH": "/usr/bin:/bin"}
        subprocess.run(
            command, cwd=source, env=environment, check=False, stdout=None if args.only else subprocess.DEVNULL
        )
    return 0 if args.only else report("anthropic-python", read_junit(results))


if __name__ == "__main__":
    sys.exit(main())
