"""`sightline cluster down`, where there is no Ray any more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sightline.cli import cluster


def test_another_process_that_has_the_number_by_now_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    file = tmp_path / "sightline" / "cluster" / "ray.pid"
    file.parent.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        file.write_text(str(other.pid))
        assert not cluster._stop_ray()
        assert other.poll() is None
        assert not file.exists()
