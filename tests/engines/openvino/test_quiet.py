"""OpenVINO sends an event to a service on the internet when it is imported, and leaves an id in the home: not here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PICTURE = Path(__file__).parent.parent.parent.parent / "examples" / "pictures" / "red-circle.png"


def test_nothing_is_left_in_the_home(tmp_path: Path) -> None:
    told_of_ci = {"CI", "TF_BUILD", "JENKINS_URL"}  # which turn it off by themselves
    environment = {name: value for name, value in os.environ.items() if name not in told_of_ci}
    command = [
        sys.executable,
        "-m",
        "sightline.cli",
        "ask",
        "--model",
        "peek",
        str(PICTURE),
        "What colour is the circle?",
    ]
    done = subprocess.run(
        command, env={**environment, "HOME": str(tmp_path)}, capture_output=True, timeout=90, check=False
    )
    assert done.stdout == b"red\n", done.stderr
    assert not (tmp_path / "intel").exists()
