"""Ray's own commands, `serve run`, `serve deploy` and `serve shutdown`, on files of ours, on one in the fields of Ray's
`LLMConfig`, and on an application in a module. One test: each of these commands takes seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]

from sightline.cluster.serve_config import Answers, of_answers, to_serve_config  # noqa: E402
from tests.cluster.real import STARTS, free_port  # noqa: E402  # it needs Ray

_PATIENCE_S = 400.0
_RAY = [sys.executable, "-m", "ray.scripts.scripts"]
_SERVE = [sys.executable, "-c", "from ray.serve.scripts import cli; cli()"]
_SMALL = {"ray_actor_options": {"num_cpus": 0.1}}


class Machine:
    """With a Ray of its own, as `ray start --head` makes it, and its commands."""

    def __init__(self, folder: Path) -> None:
        self.http = free_port()
        self._gcs, self._dashboard = free_port(), free_port()
        self._folder = folder
        self._environment = {
            **os.environ,
            "RAY_ADDRESS": f"127.0.0.1:{self._gcs}",
            "RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{self._dashboard}",
        }

    @contextmanager
    def started(self) -> Iterator[None]:
        """Ray gives up where its agents have not come up within 15 s: then once more."""
        for _ in range(STARTS):
            with self.running(
                *_RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={self._gcs}",
                "--num-cpus=4", "--dashboard-host=127.0.0.1", f"--dashboard-port={self._dashboard}",
                "--dashboard-agent-listen-port=0", "--object-store-memory=150000000", "--disable-usage-stats",
            ) as process:  # fmt: skip
                log = self._folder / "ray.log"
                while process.poll() is None and "Ray runtime started" not in log.read_text():
                    time.sleep(0.3)
                if process.poll() is None:
                    yield
                    return
        pytest.fail((self._folder / "ray.log").read_text()[-3000:])

    @contextmanager
    def running(self, *command: str) -> Iterator[subprocess.Popen[bytes]]:
        """Until SIGINT, or SIGTERM where that does not help."""
        with (self._folder / "ray.log").open("ab") as log:
            process = subprocess.Popen(
                command, env=self._environment, cwd=self._folder, stdout=log, stderr=log, start_new_session=True
            )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT if command[: len(_SERVE)] == tuple(_SERVE) else signal.SIGTERM)
            process.wait(_PATIENCE_S)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def serve(self, *arguments: str) -> str:
        done = subprocess.run(
            [*_SERVE, *arguments], env=self._environment, cwd=self._folder, capture_output=True, text=True,
            timeout=_PATIENCE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr

    def write(self, name: str, config: dict[str, Any]) -> str:
        (self._folder / name).write_text(yaml.safe_dump(config))
        return name

    def models(self) -> list[str]:
        """That answer at Ray's port; none where nothing does."""
        try:
            reply = httpx.get(f"http://127.0.0.1:{self.http}/v1/models", timeout=30)
            return sorted(model["id"] for model in reply.json()["data"]) if reply.status_code == 200 else []
        except (httpx.TransportError, ValueError):
            return []

    def ask(self, model: str) -> str:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
        reply = httpx.post(f"http://127.0.0.1:{self.http}/v1/chat/completions", json=body, timeout=120)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["choices"][0]["message"]["content"])

    def until(self, holds: Any, process: subprocess.Popen[bytes] | None = None) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not holds():
            log = (self._folder / "ray.log").read_text()[-3000:]
            assert process is None or process.poll() is None, log
            assert time.monotonic() < deadline, log
            time.sleep(0.3)


def test_rays_own_commands_take_our_files_and_applications(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    with machine.started():
        ours = of_answers(Answers(model="peek", engine="fake", name="ours"))
        ours = {**ours, "deployments": {"ours": _SMALL}, "ingress": _SMALL}
        file = machine.write("ours.yaml", to_serve_config(ours, host="127.0.0.1", port=machine.http))
        with machine.running(*_SERVE, "run", file) as process:
            machine.until(lambda: machine.models() == ["ours"], process)
            assert machine.ask("ours").endswith("You said: hello")
        machine.until(lambda: machine.models() == [])

        (tmp_path / "mine.py").write_text(
            "from sightline.cluster import app\n"
            "models = [{'name': 'mine', 'engine': 'fake'}]\n"
            f"small = {_SMALL!r}\n"
            "application = app({'settings': {'models': models}, 'deployments': {'mine': small}, 'ingress': small})\n"
        )
        machine.serve("start", "--http-host", "127.0.0.1", "--http-port", str(machine.http))
        machine.serve("run", "mine:application", "--non-blocking", "--name", "sightline")
        machine.until(lambda: machine.models() == ["mine"])
        assert machine.ask("mine").endswith("You said: hello")

        llm = {
            "model_loading_config": {"model_id": "theirs", "model_source": "peek"},
            "engine": "fake",  # a field of ours: without it the engine is vLLM
            "deployment_config": {"autoscaling_config": {"min_replicas": 1, "max_replicas": 2}, **_SMALL},
            "engine_kwargs": {"max_model_len": 4096, "max_num_seqs": 4},
        }
        application = {
            "name": "sightline",
            "route_prefix": "/",
            "import_path": "sightline.cluster:build_openai_app",
            "args": {"llm_configs": [llm], "ingress_deployment_config": _SMALL},
        }
        http = {"host": "127.0.0.1", "port": machine.http}
        machine.serve("deploy", machine.write("theirs.yaml", {"http_options": http, "applications": [application]}))
        machine.until(lambda: machine.models() == ["theirs"])
        assert machine.ask("theirs").endswith("You said: hello")
        assert "theirs" in machine.serve("status")

        machine.serve("shutdown", "-y")
        machine.until(lambda: machine.models() == [])
