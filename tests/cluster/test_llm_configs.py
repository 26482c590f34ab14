"""A file in Ray's own words, deployed as it stands, behind HAProxy: through Ray's REST API, as `sightline cluster up`
does it, on a Ray that it starts. One machine, other processes, and nothing of it is left."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import yaml

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture
def sightline(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """The command, in an environment of its own."""
    sessions = tempfile.mkdtemp(prefix="ray-")  # paths of sockets below it must be short
    # HAProxy's own ports are fixed, and another Ray of these tests may have them.
    ports = {f"RAY_SERVE_HAPROXY_{name}_PORT": str(free_port()) for name in ("METRICS", "STATS")}
    own = {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path), "RAY_TMPDIR": sessions}
    environment = {**os.environ, **own, **ports}
    address = f"http://127.0.0.1:{free_port()}"

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "sightline.cli", "cluster", *arguments, "--address", address]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    yield run
    if (pid := tmp_path / "sightline" / "cluster" / "ray.pid").exists():
        os.kill(int(pid.read_text()), signal.SIGTERM)
    shutil.rmtree(sessions, ignore_errors=True)


def test_up_status_and_down(sightline: Callable[..., str], tmp_path: Path) -> None:
    port = free_port()
    file = tmp_path / "serve.yaml"
    config = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {
                "name": "sightline",
                "route_prefix": "/",
                "import_path": "sightline.cluster:build_openai_app",
                "args": {
                    "llm_configs": [
                        {
                            "model_loading_config": {"model_id": "seer", "model_source": "peek"},
                            "engine": "fake",
                            "engine_kwargs": {"max_model_len": 64},
                            "placement_group_config": {"bundles": [{"CPU": 0.5}]},
                            "deployment_config": {"autoscaling_config": {"min_replicas": 1, "max_replicas": 2}},
                        }
                    ],
                    "ingress_deployment_config": {"ray_actor_options": {"num_cpus": 0.1}},
                },
            }
        ],
    }
    file.write_text(yaml.safe_dump(config))
    assert "running" in sightline("up", str(file))
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        body = {"model": "seer", "messages": [{"role": "user", "content": "hello"}]}
        reply = client.post("/v1/chat/completions", json=body)
        assert reply.json()["choices"][0]["message"]["content"].endswith("You said: hello")
        assert len(reply.headers.get_list("x-request-id")) == 1
        long = {"model": "seer", "messages": [{"role": "user", "content": "word " * 100}]}
        assert client.post("/v1/chat/completions", json=long).json()["error"]["code"] == "context_length_exceeded"
    assert "model:seer: healthy, 1 of 1 replicas" in sightline("status")
    sightline("down")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/v1/models")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
