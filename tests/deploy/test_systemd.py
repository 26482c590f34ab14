"""The unit and its example: systemd takes it, and what it starts would start."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sightline.cli import COMMANDS, serve
from sightline.config import Settings

SYSTEMD = Path(__file__).parents[2] / "deploy" / "systemd"
UNIT = SYSTEMD / "sightline.service"
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not there")


def settings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.M):
        found.setdefault(name, []).append(value)
    return found


def test_what_it_starts_would_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, command, file = settings()["ExecStart"][0].split()
    assert (Path(program).name, file) == ("sightline", "/etc/sightline/sightline.yaml")
    assert command == "serve"
    assert command in COMMANDS
    monkeypatch.setenv("SIGHTLINE_KEY_SHA256", "ab" * 32)
    monkeypatch.setenv("SIGHTLINE_DATA_DIR", str(tmp_path))
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    served = serve.to_settings(parser.parse_args([str(SYSTEMD / "sightline.yaml")]))
    assert [key.name for key in served.access.keys] == ["first"]


def test_it_has_the_time_to_drain_and_the_whole_group_ends() -> None:
    unit = settings()
    assert float(unit["TimeoutStopSec"][0]) > Settings().drain_s + 10
    assert unit["KillMode"] == ["mixed"], "SIGTERM to the server alone, which ends its engines itself"


def test_what_it_writes_is_its_own() -> None:
    unit = settings()
    assert unit["DynamicUser"] == ["yes"]
    assert unit["ProtectSystem"] == ["strict"]
    state = unit["StateDirectory"][0]
    assert f"SIGHTLINE_DATA_DIR=%S/{state}" in unit["Environment"][0].split()
    assert "MemoryDenyWriteExecute" not in unit, "OpenVINO compiles kernels as it runs"


def unit_at(directory: Path) -> Path:
    """With a program that is there in the place of ours."""
    copy = directory / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/sightline/bin/sightline", "/bin/true"))
    return copy


@needs_systemd
def test_systemd_takes_it(tmp_path: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", unit_at(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_systemd_calls_it_little_exposed(tmp_path: Path) -> None:
    """2.0 of 10; a unit without any of it has 9.6."""
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", "--no-pager", unit_at(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
