"""What is measured: an application of ours on a Ray of one machine, and `sightline serve` beside it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any, Self

from sightline.bench.cluster import processes
from sightline.bench.gateway.processes import free_port

NAME = "sightline"
MODEL = "fake"
_START_S = 120.0
_STARTS = 4


def prepare() -> None:
    """Ray's library reads these once, when it is imported: as `sightline cluster up` has them."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_register_timeout_seconds", "180")  # a machine that has other work too
    os.environ.setdefault("RAY_agent_register_timeout_ms", "180000")
    os.environ.setdefault("RAY_worker_niceness", "0")  # as what it is compared with; else Ray gives way to all others


class Cluster:
    """Life: made -> `with` it. One in a process."""

    def __init__(self) -> None:
        self.port = free_port()

    def __enter__(self) -> Self:
        import ray  # type: ignore[import-not-found, unused-ignore]
        from ray import serve  # type: ignore[import-not-found, unused-ignore]

        # Processors are only counted: what is paced needs few. Ray gives itself up where its agents take 15 s to come.
        options = {"num_cpus": 32, "object_store_memory": 150_000_000, "include_dashboard": False}
        for tries_left in reversed(range(_STARTS)):
            try:
                ray.init(**options, log_to_driver=False, logging_level="ERROR")
                break
            except Exception:
                if not tries_left:
                    raise
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": self.port})
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()  # and with it all that it has started: nobody waits for an orderly end

    def deploy(self, models: list[dict[str, Any]], deployments: dict[str, dict[str, Any]]) -> None:
        """Returns when it serves."""
        from ray import serve

        from sightline.cluster import app

        options = {name: {"ray_actor_options": {"num_cpus": 0.1}, **each} for name, each in deployments.items()}
        ingress = {"ray_actor_options": {"num_cpus": 0.1}}
        args = {"settings": {"models": models}, "deployments": options, "ingress": ingress}
        serve.run(app(args), name=NAME, route_prefix="/")

    def wanted(self, model: str) -> int:
        """Replicas that Ray has begun to run, or does."""
        from ray import serve

        return sum(serve.status().applications[NAME].deployments[f"model:{model}"].replica_states.values())

    def running(self, model: str) -> int:
        """Replicas that Ray says run."""
        from ray import serve

        found = serve.status().applications[NAME].deployments[f"model:{model}"].replica_states
        return int(found.get("RUNNING", 0))


def kill_replica(model: str) -> float:
    """One of a model's, at once. Returns when that was."""
    os.kill(replicas(model)[0], signal.SIGKILL)
    return time.monotonic()


def replicas(model: str) -> list[int]:
    """Processes of a model's replicas, those that are being started too."""
    return processes.replicas(f"model:{model}")


class Single:
    """`sightline serve` with the same models. Life: made -> `with` it."""

    def __init__(self, models: list[dict[str, Any]]) -> None:
        self.port = free_port()
        self._models = models

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        file = Path(self._folder.name) / "sightline.yaml"
        file.write_text(json.dumps({"models": self._models}))  # JSON is YAML
        command = [sys.executable, "-m", "sightline.cli", "serve", str(file), "--port", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(self.port)
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._folder.cleanup()


def wait_for(port: int) -> None:
    """Returns when a server is ready there."""
    deadline = time.monotonic() + _START_S
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as reply:
                if reply.status == 200:
                    return
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise SystemExit(f"No server became ready on port {port}.")
        time.sleep(0.1)
