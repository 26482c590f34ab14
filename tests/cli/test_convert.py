"""`sightline convert`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sightline.cli import main


def test_the_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "peek-gguf"
    assert main(["convert", "peek", "--for", "gguf", "--type", "q8_0", "--out", str(out)]) == 0
    assert {path.name for path in out.glob("*.gguf")} == {"model-q8_0.gguf", "mmproj-q8_0.gguf"}
    told = capsys.readouterr()
    assert f"sightline serve --engine llamacpp --model {out}" in told.out
    assert [line.split(":")[0] for line in told.err.splitlines()] == ["model-q8_0.gguf", "mmproj-q8_0.gguf"]


def test_what_cannot_be_converted_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path / "nowhere"), "--for", "gguf"]) == 1
    assert "neither `peek` nor a directory" in capsys.readouterr().err
    (tmp_path / "config.json").write_text('{"model_type": "gemma3"}')
    assert main(["convert", str(tmp_path), "--for", "gguf", "--out", str(tmp_path / "out")]) == 1
    assert "'gemma3'" in capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "sightline.engines.llamacpp.convert", raising=False)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert main(["convert", "peek", "--for", "gguf", "--out", str(tmp_path)]) == 1
    assert "pip install 'sightline[llamacpp]'" in capsys.readouterr().err
