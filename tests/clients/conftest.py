"""A server on the embedded model, which sees, and the fake engine, which calls tools and speaks JSON."""

from __future__ import annotations

import base64
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PICTURES = ROOT / "examples" / "pictures"

CONFIGURATION = """
models:
  - {name: peek}
  - {name: fake, engine: fake, aliases: [fake-embedding]}
"""


def to_data_url(name: str) -> str:
    return f"data:image/png;base64,{base64.b64encode((PICTURES / name).read_bytes()).decode()}"


@pytest.fixture(scope="session")
def red_circle() -> str:
    return to_data_url("red-circle.png")


@pytest.fixture(scope="session")
def yellow_star() -> str:
    return to_data_url("yellow-star.png")


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    file = tmp_path_factory.mktemp("server") / "sightline.yaml"
    file.write_text(CONFIGURATION)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "sightline.cli", "serve", str(file), "--port", str(port), "--log-level", "error"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 120
            while True:
                assert server.poll() is None, "the server ended"
                assert time.monotonic() < deadline
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
