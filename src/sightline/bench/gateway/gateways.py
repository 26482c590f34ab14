"""What is measured, and how each is started: a program that listens on a port, in front of the stub or the stub."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sightline.bench.gateway import processes, report, stub
from sightline.bench.gateway.load import Target

_START_S = 90.0
_HERE = Path(__file__).parent
_KEY = "sk-benchmark-0123456789abcdef0123456789abcdef"
BUDGET = {"type": "CellBudget", "cell": 28, "min_pixels": 3136, "max_pixels": 448 * 448}
"""Of the model behind Sightline, which knows what pictures cost: at most 256 tokens each."""


@dataclass(frozen=True)
class Running:
    target: Target
    pid: int


@dataclass(frozen=True)
class Gateway:
    name: str
    command: Callable[[int, int, Path], list[str]]
    """From its own port, the stub's, and a directory of its own, to what is run."""
    key: str | None = None
    """By which it is asked."""


def _stub(port: int, upstream: int, folder: Path) -> list[str]:
    return [sys.executable, "-m", stub.__name__, "--port", str(port)]


def _peer(python: str, script: str) -> Callable[[int, int, Path], list[str]]:
    def command(port: int, upstream: int, folder: Path) -> list[str]:
        return [python, str(_HERE / script), "--port", str(port), "--upstream", f"http://127.0.0.1:{upstream}/v1"]

    return command


def _litellm_proxy(python: str) -> Callable[[int, int, Path], list[str]]:
    def command(port: int, upstream: int, folder: Path) -> list[str]:
        file = folder / "litellm.yaml"
        base = {"api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "none"}
        models = [{"model_name": name, "litellm_params": {"model": f"openai/{name}", **base}} for name in stub.MODELS]
        told = {
            "model_list": models,
            "general_settings": {"master_key": _KEY},
            "litellm_settings": {"telemetry": False},
        }
        file.write_text(json.dumps(told))
        arguments = ["--config", str(file), "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
        return [str(Path(python).with_name("litellm")), *arguments]

    return command


def _sightline(*arguments: str) -> Callable[[int, int, Path], list[str]]:
    def command(port: int, upstream: int, folder: Path) -> list[str]:
        file = folder / "sightline.yaml"
        file.write_text(json.dumps(configuration(port, upstream, folder)))  # JSON is YAML
        return [sys.executable, "-m", "sightline.cli", "serve", str(file), *arguments]

    return command


def configuration(port: int, upstream: int, folder: Path) -> Mapping[str, object]:
    options = {"base_url": f"http://127.0.0.1:{upstream}/v1", "context_length": 131072, "budget": BUDGET}
    models = [
        {"name": name, "engine": "remote", "options": options, "max_concurrent": 1024, "max_queue": 1024}
        for name in stub.MODELS
    ]
    key = {"name": "benchmark", "sha256": hashlib.sha256(_KEY.encode()).hexdigest(), "requests_per_minute": 10**9}
    return {"port": port, "data_dir": str(folder / "data"), "access": {"keys": [key]}, "models": models}


STUB = Gateway(report.STUB, _stub)
SIGHTLINE = Gateway(report.OURS, _sightline(), _KEY)
TWO_WORKERS = Gateway(report.TWO_WORKERS, _sightline("--workers", "2"), _KEY)


def gateways(python_of_peers: str) -> tuple[Gateway, ...]:
    return (
        SIGHTLINE,
        Gateway(report.LITELLM, _litellm_proxy(python_of_peers), _KEY),
        Gateway(report.SDK, _peer(python_of_peers, "peer_litellm.py")),
        Gateway("FastAPI + httpx", _peer(python_of_peers, "peer_plain.py")),
    )


@contextmanager
def running(gateway: Gateway, upstream: int, folder: Path, cores: set[int]) -> Iterator[Running]:
    """Started on these cores, and ended with all that it has started. Raises `SystemExit` when it does not start."""
    port = processes.free_port()
    path = folder / gateway.name.replace(" ", "-").replace("'", "")
    path.mkdir(exist_ok=True)
    log = path / "log"
    pinned = ["taskset", "--cpu-list", ",".join(map(str, sorted(cores)))]
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # or it asks a web server when it starts
    with (
        log.open("wb") as to,
        subprocess.Popen(
            [*pinned, *gateway.command(port, upstream, path)], stdout=to, stderr=to, env=environment
        ) as process,
    ):
        try:
            target = Target(port, gateway.key)
            _wait(process, target, log)
            yield Running(target, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(process: subprocess.Popen[bytes], target: Target, log: Path) -> None:
    """Until it answers a request."""
    body = {"model": "words-8", "messages": [{"role": "user", "content": "Hello"}]}
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {target.key}"} if target.key else {})
    url = f"http://127.0.0.1:{target.port}/v1/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(request, timeout=_START_S):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{process.args!r} does not answer:\n{log.read_text()[-4000:]}")
