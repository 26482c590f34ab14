"""Our own server in a process of its own, for engines that speak to one."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

_ADDRESS = re.compile(r"on (http://\S+/v1)")


@contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """`sightline serve` with these arguments, ready; its base URL."""
    command = [sys.executable, "-m", "sightline.cli", "serve", "--port", "0", "--log-level", "error", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = _ADDRESS.search(server.stdout.readline())
            assert address is not None, "it says where it serves"
            _wait_until_ready(address[1].removesuffix("/v1") + "/ready")
            yield address[1]
        finally:
            server.kill()


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.02)
    raise AssertionError("the server did not become ready")
