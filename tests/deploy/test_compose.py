"""The compose files: everything that they name exists, and every server in them would start, with a key before it.

`docker compose config` checks them too, where it is installed; it needs no daemon.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from sightline.cli import pull, serve, worker
from sightline.config import PEEK, ModelConfig, Settings
from tests.deploy.dockerfile import read

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy" / "compose"
FILES = sorted(COMPOSE.glob("*/compose.yaml"))
NAMES = [path.parent.name for path in FILES]
GIVEN = {
    "SIGHTLINE_KEY_SHA256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
    "REDIS_PASSWORD": "secret",
    "GRAFANA_PASSWORD": "secret",
    "MODEL_DIR": "/models/x",
}
"""What an operator exports first."""
_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")
IMAGE = read(ROOT / "deploy/docker/Dockerfile")[-1].environment


def fill_in(text: str) -> str:
    """As Compose does; `$$` is a `$` of the container's."""

    def value(match: re.Match[str]) -> str:
        if match[1] in GIVEN:
            return GIVEN[match[1]]
        assert match[2] == "-", f"{match[0]}: nobody is told to set it"
        return match[3]

    return _VARIABLE.sub(value, text.replace("$$", "\0")).replace("\0", "$")


def load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(fill_in(path.read_text()))
    for name, service in document["services"].items():
        if "extends" in service:
            base = load(path.parent / service["extends"]["file"])["services"][service["extends"]["service"]]
            document["services"][name] = {**base, **service}
    return document


@pytest.fixture(params=FILES, ids=NAMES)
def file(request: pytest.FixtureRequest) -> Path:
    assert isinstance(request.param, Path)
    return request.param


def ours(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: each for name, each in document["services"].items() if "build" in each}


def binds(service: Mapping[str, Any]) -> dict[str, str]:
    """Paths of this machine by where they are mounted."""
    split = [volume.split(":") for volume in service.get("volumes", ())]
    return {parts[1]: parts[0] for parts in split if parts[0].startswith((".", "/"))}


def test_there_is_one_for_every_way_to_run() -> None:
    assert set(NAMES) == {"alone", "redis", "ollama", "vllm", "ovms", "observed"}


def test_what_is_mounted_exists(file: Path) -> None:
    for service in load(file)["services"].values():
        for target, source in binds(service).items():
            assert source in GIVEN.values() or (file.parent / source).resolve().exists(), f"{source} is not there"
            assert target.startswith("/")


def test_volumes_networks_and_dependencies_are_declared(file: Path) -> None:
    document = load(file)
    for service in document["services"].values():
        named = {volume.split(":")[0] for volume in service.get("volumes", ())} - set(binds(service).values())
        assert named <= document.get("volumes", {}).keys()
        assert set(service.get("networks", ())) <= document.get("networks", {}).keys()
        assert set(service.get("depends_on", ())) <= document["services"].keys()


def test_images_are_pinned(file: Path) -> None:
    for service in load(file)["services"].values():
        assert re.search(r":v?\d+\.\d+", service["image"]), service["image"]


def test_only_this_machine_reaches_what_is_published(file: Path) -> None:
    published = [port for service in load(file)["services"].values() for port in service.get("ports", ())]
    assert "127.0.0.1:8000:8000" in published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_ours_run_with_as_little_as_they_need(file: Path) -> None:
    for service in ours(load(file)).values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert float(service["stop_grace_period"].rstrip("s")) > Settings().drain_s + 5
        assert not service.get("privileged")


def test_what_must_be_given_is_told_in_the_first_lines(file: Path) -> None:
    text = file.read_text()
    first = text.partition("\nname:")[0]
    for name in re.findall(r"\$\{(\w+):\?", text):
        assert re.search(rf"\b{name}=", first), f"{name} is not told of"
    assert f"deploy/compose/{file.parent.name}/compose.yaml up" in first


def to_args(module: Any, command: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args([str(word) for word in command])


def test_our_commands_would_start(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the image's variables, the service's, and the files that are mounted: keys, engines and options are checked
    as `sightline serve` does before it listens."""
    for name, service in ours(load(file)).items():
        for variable, value in {**IMAGE, **service.get("environment", {})}.items():
            if variable not in {"PATH", "HOME"}:
                monkeypatch.setenv(variable, str(value))
        monkeypatch.setenv("SIGHTLINE_DATA_DIR", str(tmp_path))
        command, *rest = service["command"]
        module = import_module(f"sightline.cli.{command}")
        if module is pull:
            args = to_args(pull, rest)
            assert args.engine == "ollama"
            assert args.option == ["base_url=http://ollama:11434"]
            continue
        (inside,) = rest
        source = file.parent / binds(service)[inside]
        mounted = tmp_path / f"{name}.yaml"
        mounted.write_text(source.read_text().replace("/models/model", str(ModelConfig(name=PEEK).path)))
        args = to_args(module, [str(mounted)])
        settings = module.to_settings(args)  # refuses what is wrong, and a bind without a key
        assert settings.models
        assert [key.name for key in settings.access.keys] == ["first"]
        if module is serve:
            assert settings.host == "0.0.0.0", "else nothing reaches it through a published port"
        else:
            assert module is worker
            assert settings.jobs == "redis://:secret@redis:6379/0"


def test_addresses_are_names_of_services(file: Path) -> None:
    names = load(file)["services"].keys()
    for path in [*file.parent.glob("*.y*ml")]:
        for host in re.findall(r"(?:http|redis)://(?:[^@/\s]*@)?([a-z]+):\d+", path.read_text()):
            assert host in names, f"{path.name} asks {host}, which is no service"


def test_prometheus_scrapes_the_listener_of_the_metrics() -> None:
    scraped = yaml.safe_load((COMPOSE / "observed/prometheus.yml").read_text())["scrape_configs"][0]["static_configs"]
    admin = yaml.safe_load((COMPOSE / "observed/sightline.yaml").read_text())["admin"]
    assert scraped == [{"targets": [f"sightline:{admin['port']}"]}]
    ports = load(COMPOSE / "observed/compose.yaml")["services"]["sightline"]["ports"]
    assert not any(str(admin["port"]) in port for port in ports), "the metrics have no key"


def compose() -> list[str] | None:
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) and not subprocess.run([*command, "version"], capture_output=True).returncode:
            return command
    return None


def test_compose_itself_takes_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (command := compose()) is None:
        pytest.skip("docker compose is not there")
    for name, value in GIVEN.items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([*command, "-f", file, "config", "--quiet"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
