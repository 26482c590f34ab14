"""llama.cpp's own server tests, with our server in the place of theirs: `python -m tests.foreign.llama_cpp`.

Those of the formats that both speak: chat, pictures, access, Anthropic's and OpenAI's newer API, and tools. They come
with the source distribution of llama-cpp-python, which carries llama.cpp. Their tiny models are not here: what a test
expects their models to say is declined; the form of the answers is not.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

from tests.foreign.llama_server_shim import REMOTE
from tests.foreign.suite import ROOT, WORK, fetch_source, read_junit, report, virtual_environment

VERSION = "0.3.36"
"""Of llama-cpp-python."""
TESTS = "vendor/llama.cpp/tools/server/tests"
FILES = (
    "unit/test_chat_completion.py",
    "unit/test_vision_api.py",
    "unit/test_security.py",
    "unit/test_compat_anthropic.py",
    "unit/test_compat_oai_responses.py",
    "unit/test_tool_call.py",
)
REQUIREMENTS = (
    "aiohttp",
    "filelock",
    "numpy",
    "openai~=2.14.0",
    "prometheus-client",
    "pytest~=8.3.3",
    "requests",
    "wget",
)
PICTURES = {"11_truck.png": "blue-square.jpg", "91_cat.png": "yellow-star.png"}
"""Names of theirs, and the pictures of ours that stand in for them."""
PLUGIN = f'''"""Written by llama_cpp.py: the suite's pictures are on this machine, and it downloads no models."""
import os
import requests

_get = requests.get
requests.get = lambda url, **more: _get(url.replace({REMOTE!r}, os.environ["FOREIGN_PICTURES"]), **more)


def pytest_sessionstart(session):
    import utils

    utils.ServerPreset.load_all = staticmethod(lambda: None)
'''


def serve_pictures(folder: Path) -> http.server.ThreadingHTTPServer:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    folder.mkdir(exist_ok=True)
    for name, ours in PICTURES.items():
        shutil.copy(ROOT / "examples" / "pictures" / ours, folder / name)
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=served.serve_forever, daemon=True).start()
    return served


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="pytest's -k: these tests alone, nothing judged")
    args = parser.parse_args()
    folder = WORK / "llama-cpp"
    suite = fetch_source("llama-cpp-python", VERSION, folder, TESTS) / TESTS
    python = virtual_environment(folder / "venv", REQUIREMENTS)
    program = folder / "llama-server"
    program.write_text(f'#!/bin/sh\ncd "{ROOT}" && exec "{sys.executable}" -m tests.foreign.llama_server_shim "$@"\n')
    program.chmod(0o755)
    (folder / "foreign_plugin.py").write_text(PLUGIN)
    pictures = serve_pictures(folder / "pictures")
    results = folder / "results.xml"
    environment = {
        **os.environ,
        "LLAMA_SERVER_BIN_PATH": str(program),
        "FOREIGN_PICTURES": f"http://127.0.0.1:{pictures.server_port}",
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "src")]),
        "PORT": "18480",
    }
    only = ["-k", args.only] if args.only else []
    command = [
        str(python),
        "-m",
        "pytest",
        *FILES,
        "-p",
        "foreign_plugin",
        "-p",
        "no:cacheprovider",
        "-q",
        "--tb",
        "short",
    ]
    quiet = None if args.only else subprocess.DEVNULL
    subprocess.run(
        [*command, f"--junitxml={results}", *only], cwd=suite, env=environment, check=False, stdout=quiet, stderr=quiet
    )
    pictures.shutdown()
    return 0 if args.only else report("llama.cpp", read_junit(results))


if __name__ == "__main__":
    sys.exit(main())
