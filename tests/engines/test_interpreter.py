"""An engine in the environment of another Python: asked first, started there, and told of what it lacks."""

from __future__ import annotations

import site
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import sightline
from sightline.cli import main
from sightline.config import ModelConfig
from sightline.configfile import check
from sightline.engines import open_engine
from sightline.engines.interpreter import ask, foreign, verify
from sightline.engines.worker import WorkerEngine
from sightline.errors import EngineUnavailable, InvalidRequest
from sightline.testing import answer
from sightline.testing import ask as request


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that holds nothing."""
    directory = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    return directory / "bin" / "python"


@pytest.fixture(scope="module")
def equipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of another one, which finds what this Python finds."""
    directory = tmp_path_factory.mktemp("equipped")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    (packages,) = directory.glob("lib/python*/site-packages")
    found = [str(Path(sightline.__file__).parent.parent), *site.getsitepackages()]
    (packages / "here.pth").write_text("\n".join(found) + "\n")
    return directory / "bin" / "python"


def test_it_says_what_it_has(bare: Path, equipped: Path) -> None:
    assert ask(str(bare), ["json", "torch_that_is_nowhere"]).missing == ("torch_that_is_nowhere",)
    assert ask(str(bare)).sightline is None
    assert ask(str(equipped)).sightline == sightline.__version__
    assert ask(str(equipped)).version == sys.version_info[:3]


def test_what_is_missing_is_named_with_what_to_run(bare: Path, equipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verify(str(equipped), "fake", ["numpy"])
    with pytest.raises(InvalidRequest, match=r"has no sightline.*sightline engine install transformers"):
        verify(str(bare), "transformers", ["torch"])
    with pytest.raises(
        InvalidRequest, match=r"lacks torch_nowhere, which the engine mine.*-m pip install .*torch_nowhere$"
    ):
        verify(str(equipped), "mine", ["torch_nowhere", "json"])
    monkeypatch.setattr("sightline.engines.interpreter.__version__", "99.0")
    with pytest.raises(InvalidRequest, match=r"has sightline 0\.\S+, and this server is 99\.0"):
        verify(str(equipped), "fake", [])


@pytest.mark.parametrize(("python", "why"), [("/nowhere/bin/python", "There is no Python"), ("true", "is no Python")])
def test_what_is_no_python_is_refused(python: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        ask(python)


def test_another_python_is_not_told_where_our_libraries_are() -> None:
    assert foreign({"PYTHONPATH": "a", "PYTHONHOME": "b", "PATH": "c"}) == {"PATH": "c"}


@pytest.mark.anyio
async def test_the_engine_runs_there(equipped: Path) -> None:
    engine = open_engine(ModelConfig(name="m", engine="fake", python=str(equipped)))
    assert isinstance(engine, WorkerEngine)
    await engine.start()
    try:
        assert psutil.Process(engine.pid).cmdline()[0] == str(equipped)
        text, _ = await answer(engine, request("hello"))
        assert "hello" in text
    finally:
        await engine.close()


@pytest.mark.anyio
async def test_a_python_without_sightline_is_told_of_at_start(bare: Path) -> None:
    engine = open_engine(ModelConfig(name="m", engine="fake", python=str(bare)))
    with pytest.raises(EngineUnavailable, match="has no sightline"):
        await engine.start()
    assert engine.state == "failed"  # type: ignore[attr-defined]
    await engine.close()


def test_an_engine_that_starts_no_python_refuses_one() -> None:
    with pytest.raises(InvalidRequest, match="ollama starts no Python"):
        open_engine(ModelConfig(name="m", engine="ollama", python="python3"))


def test_in_a_file_it_is_checked_and_relative_to_the_file(tmp_path: Path, bare: Path, equipped: Path) -> None:
    (tmp_path / "envs").symlink_to(equipped.parent.parent)
    file = tmp_path / "sightline.yaml"
    file.write_text("models:\n  - name: a\n    engine: fake\n    python: envs/bin/python\n")
    settings, problems = check(file)
    assert not problems
    assert settings is not None
    assert settings.models[0].python == str(tmp_path / "envs/bin/python")
    file.write_text(f"models:\n  - name: a\n    engine: fake\n    python: {bare}\n")
    _, (problem,) = check(file)
    assert (problem.line, problem.path) == (4, "models[0].python")
    assert "has no sightline" in problem.message


def test_on_the_command_line(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = Path(__file__).parent.parent.parent / "examples" / "pictures" / "blue-square.jpg"
    assert main(["ask", "--engine", "fake", "--python", str(bare), str(picture), "What is it?"]) == 1
    assert "has no sightline" in capsys.readouterr().err
