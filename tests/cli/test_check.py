"""`sightline check`: a table of what would be served, or every problem and a status of 1."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.cli import main

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "sightline.yaml"


def test_what_would_be_served(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(EXAMPLE)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["peek", "openvino", "peek", "at", "start", "gpt-4o-mini", "stand-in"]
    assert lines[2].split() == ["stand-in", "fake", "-", "on", "demand", "-", "-"]
    assert lines[3] == "on http://127.0.0.1:8000/v1"


def test_every_problem_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("host: 0.0.0.0\nmodels:\n- {name: a, engine: fake, options: {x: 1}}\n")
    assert main(["check", str(file)]) == 1
    out, told = capsys.readouterr()
    assert out == ""
    assert "models[0].options.x" in told
    assert "--open-to-anyone" in told
