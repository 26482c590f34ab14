"""`sightline ask`: pictures in the order in which they are named, an answer on standard output."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from sightline.api.app import create_app
from sightline.cli import main
from sightline.config import ModelConfig, Settings
from sightline.service import Service
from tests.api.serving import serving


def save(path: Path, colour: str) -> str:
    Image.new("RGB", (64, 48), colour).save(path)
    return str(path)


def test_the_answer_says_what_was_seen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pictures = [save(tmp_path / "a.png", "red"), save(tmp_path / "b.jpg", "blue")]
    assert main(["ask", "--engine", "fake", *pictures, "What is this?"]) == 0
    out = capfd.readouterr().out
    assert out.index("red") < out.index("blue")
    assert "What is this?" in out


def test_a_question_alone(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "--engine", "fake", "Hello?"]) == 0
    assert "Hello?" in capfd.readouterr().out


def test_a_picture_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "--engine", "fake", str(tmp_path / "none.png"), "?"]) == 1
    assert "none.png" in capsys.readouterr().err


def test_a_file_that_is_no_picture(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "note.txt").write_text("hello")
    assert main(["ask", "--engine", "fake", str(tmp_path / "note.txt"), "?"]) == 1
    assert "note.txt" in capfd.readouterr().err


def test_a_question_that_was_forgotten(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The last argument is the question: without one it would be the picture's name, asked about nothing."""
    assert main(["ask", "--engine", "fake", save(tmp_path / "a.PNG", "red")]) == 1
    assert "where the question belongs" in capfd.readouterr().err


def test_an_address_is_told_as_it_was_given(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "--engine", "fake", "https://example.com/a.png", "?"]) == 1
    assert "'https://example.com/a.png' is an address" in capfd.readouterr().err


def test_an_option_that_the_engine_does_not_know_is_told_before_it_starts(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "--engine", "fake", "--option", "stps=1", "Hello?"]) == 1
    assert capfd.readouterr().err == "sightline: --option stps: there is no such key. Did you mean step_s?\n"


def test_another_sightline_is_asked_about_a_picture_as_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its prompt is counted there first, with the smallest picture there can be, which a Sightline has to take."""
    settings = Settings(models=(ModelConfig(name="m", engine="fake"),), data_dir=str(tmp_path))
    with serving(create_app(Service(settings), settings, wait=True)) as port:
        options = [f"base_url=http://127.0.0.1:{port}/v1", "kind=sightline", "budget=as-is"]
        given = [word for option in options for word in ("--option", option)]
        assert main(["ask", "--engine", "remote", "--name", "m", *given, save(tmp_path / "a.png", "red"), "?"]) == 0
    assert "mostly red" in capfd.readouterr().out
