"""`sightline serve --workers 2` as a process, and what its processes are."""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

ADMIN = "sl-admin-0123456789abcdefghijklmnopqrstuvwxyz"
BY_RATE = "sl-rate-0123456789abcdefghijklmnopqrstuvwxyz"
AT_ONCE = "sl-once-0123456789abcdefghijklmnopqrstuvwxyz"
RATE = 20
ONCE = 3


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


CONFIG = f"""
workers: 2
port: 0
admin: {{port: 0}}
log_level: info
data_dir: DATA_DIR
models:
  - name: fake
    engine: fake
    max_concurrent: 64
access:
  keys:
    - name: admin
      sha256: {digest(ADMIN)}
      admin: true
    - name: rate
      sha256: {digest(BY_RATE)}
      requests_per_minute: {RATE}
    - name: once
      sha256: {digest(AT_ONCE)}
      concurrent: {ONCE}
"""


@dataclass
class Running:
    process: subprocess.Popen[str]
    url: str
    admin_url: str
    file: Path
    log: Path

    def of(self, role: str) -> list[int]:
        """Process ids of those in this role, `core` or `front`, that live."""
        found = []
        for child in psutil.Process(self.process.pid).children():
            try:
                line = child.cmdline()
                if "sightline.frontends" in line and role in line and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child.pid)
            except psutil.Error:
                continue
        return found

    def client(self, key: str = ADMIN, **options: object) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {key}"}
        limits = httpx.Limits(max_connections=500, max_keepalive_connections=500)
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=30, limits=limits, **options)  # type: ignore[arg-type]

    def logged(self, text: str) -> int:
        return self.log.read_text().count(text)


@contextmanager
def running(directory: Path, *, ready: bool = True) -> Iterator[Running]:
    """`ready`: it is waited for."""
    file, log = directory / "sightline.yaml", directory / "log"
    file.write_text(CONFIG.replace("DATA_DIR", str(directory / "data")))
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "sightline.cli", "serve", str(file)],
            stdout=subprocess.PIPE, stderr=out, text=True, cwd=directory, preexec_fn=_end_with_us,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1].removesuffix("/v1")
        admin_url = process.stdout.readline().split()[3].removesuffix("/metrics")
        server = Running(process, url, admin_url, file, log)
        if ready:
            wait_for(lambda: is_ready(url), 30)
        yield server
    finally:
        family = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        finally:
            for pid in family:
                if psutil.pid_exists(pid):
                    wait_for(lambda: not lives(pid), 10)  # noqa: B023


def _end_with_us() -> None:
    """Of tests that are killed nothing is left either (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def descendants(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def wait_for(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.02)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
