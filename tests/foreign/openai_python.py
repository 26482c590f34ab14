"""openai-python's own request tests, pointed at our server: `python -m tests.foreign.openai_python`.

They were written for a mock of all of OpenAI: every field of a request at once, objects that were never made.
What we answer with an error by intent is in `declined.toml`. The suite comes from the SDK's source distribution.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from tests.foreign.suite import ROOT, WORK, fetch_source, read_junit, report, server, virtual_environment

VERSION = "3.52.0"
CONFIGURATION = f"""
models:
  - name: gpt-6-astra
    engine: fake
    aliases: [gpt-3.5-turbo-instruct, text-embedding-3-small, text-embedding-ada-002, model, string]
  - name: whisper-1
    engine: openvino
    source: {ROOT / "tests" / "engines" / "whisper" / "model"}
    aliases: [gpt-4o-transcribe]
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="pytest's -k: these tests alone, nothing judged")
    args = parser.parse_args()
    folder = WORK / "openai-python"
    source = fetch_source("openai", VERSION, folder)
    python = virtual_environment(
        folder / "venv",
        [f"openai[aiohttp]=={VERSION}", "pytest>=9.0.3", "pytest-asyncio>=1.4", "pytest-timeout>=2.4", "rich>=13.7"],
    )
    results = folder / "results.xml"
    with server(CONFIGURATION, folder) as url:
        command = [str(python), "-m", "pytest", "tests/api_resources", "-q", "--timeout", "30", "--tb", "line"]
        command += [
            "-o",
            "addopts=",
            "-p",
            "no:cacheprovider",
            f"--junitxml={results}",
            *(["-k", args.only] if args.only else []),
        ]
        environment = {"TEST_API_BASE_URL": f"{url}/v1", "PATH": "/usr/bin:/bin"}
        subprocess.run(
            command, cwd=source, env=environment, check=False, stdout=None if args.only else subprocess.DEVNULL
        )
    return 0 if args.only else report("openai-python", read_junit(results))


if __name__ == "__main__":
    sys.exit(main())
