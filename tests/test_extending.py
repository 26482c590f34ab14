"""docs/extending.md, done: its engine, installed like a package, served from its own process, held to the contract."""

from __future__ import annotations

import asyncio
import re
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sightline.cli import main
from sightline.config import ModelConfig
from sightline.configfile import check, schema
from sightline.engines import Engine, EngineEntry, engine_names, find_entry, open_engine
from sightline.engines.worker import WorkerEngine
from sightline.errors import InvalidRequest
from sightline.testing import CLAUSES, ISOLATED_CLAUSES, Clause, Subject

PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
ENGINE, ENTRY = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
PROJECT = tomllib.loads(re.findall(r"^```toml\n(.*?)^```", PAGE, re.M | re.S)[0])
(TESTS,) = re.findall(r"^```py\n(.*?)^```", PAGE, re.M | re.S)


def install(site: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, code: str, **engines: str) -> None:
    """What `pip install` leaves behind, for this process and for those that it starts."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\n")
    points = "".join(f"{engine} = {target}\n" for engine, target in engines.items())
    (info / "entry_points.txt").write_text(f"[sightline.engines]\n{points}")
    (site / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=":")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as monkeypatch:
        project = PROJECT["project"]
        install(
            tmp_path_factory.mktemp("site"), monkeypatch, project["name"], "sightline_parrot", ENGINE,
            **project["entry-points"]["sightline.engines"],
        )  # fmt: skip
        yield


def test_the_engine_has_fewer_than_sixty_lines() -> None:
    assert len(ENGINE.splitlines()) < 60


# --- the contract ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def subject(installed: None) -> Subject:
    """As the page's test file has it."""
    names: dict[str, Any] = {}
    exec(compile(TESTS, "test_parrot.py", "exec"), names)
    found: Subject = names["PARROT"]
    return found


@pytest.fixture(scope="module")
async def engine(subject: Subject, anyio_backend: str) -> AsyncIterator[Engine]:
    async with subject.running() as engine:
        assert isinstance(engine, WorkerEngine)
        yield engine


SLOW = {"killed_at_any_moment_it_answers_again", "pictures_leave_nothing_behind", "it_dies_with_its_parent"}
"""Of the worker process, not of the engine in it: tests/engines/test_conformance.py has them."""


@pytest.mark.anyio
@pytest.mark.parametrize(
    "clause", [c for c in CLAUSES + ISOLATED_CLAUSES if c.__name__ not in SLOW], ids=lambda clause: clause.__name__
)
async def test_it_keeps_the_contract(clause: Clause, subject: Subject, engine: Engine) -> None:
    async with asyncio.timeout(60):
        await clause(subject, engine)


# --- how it is found -------------------------------------------------------------------------------------------------


def test_it_is_an_engine_like_ours(installed: None, tmp_path: Path) -> None:
    assert find_entry("parrot") == EngineEntry("sightline_parrot:Parrot", summary="package sightline-parrot 1.0")
    assert engine_names()[-1] == "parrot"
    (tmp_path / "s.yaml").write_text("models:\n- {name: polly, engine: parrot, options: {step_s: 0.5}}\n")
    settings, problems = check(tmp_path / "s.yaml")
    assert not problems
    assert settings is not None
    assert settings.models[0].engine == "parrot"
    assert "parrot" in schema()["$defs"]["ModelConfig"]["properties"]["engine"]["enum"]


def test_its_own_check_of_options_is_asked(installed: None, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("models:\n- {name: polly, engine: parrot, options: {step: 1}}\n")
    _, problems = check(tmp_path / "s.yaml")
    assert [problem.message for problem in problems] == ["The engine parrot has no option 'step'."]


def test_it_answers_on_the_command_line(installed: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "hello", "--engine", "parrot", "--name", "polly"]) == 0
    assert capsys.readouterr().out == "I see no picture. I heard: hello\n"


def test_an_entry_says_more(installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "sightline-more", "sightline_more", ENTRY, more="sightline_more:ENTRY")
    entry = find_entry("more")
    assert (entry.isolated, entry.summary, entry.needs) == (False, "repeats what it hears", ("torch",))


def test_an_unknown_name_is_told_what_there_is(installed: None) -> None:
    with pytest.raises(InvalidRequest, match=r"no engine 'parot'\. Did you mean parrot\? Engines: .*fake, .*parrot"):
        find_entry("parot")


def test_a_name_of_ours_cannot_be_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "cuckoo", "cuckoo", "X = 1", openvino="cuckoo:X")
    with pytest.raises(InvalidRequest, match=r"'openvino' is claimed by Sightline and by the package cuckoo 1\.0"):
        open_engine(ModelConfig(name="m"))


def test_a_name_cannot_be_two_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        install(tmp_path / name, monkeypatch, name, name, "X = 1", same=f"{name}:X")
    with pytest.raises(InvalidRequest, match=r"the package first 1\.0 and by the package second 1\.0.*Uninstall"):
        find_entry("same")
    assert "same" in engine_names()


@pytest.mark.parametrize(
    ("code", "target", "told"),
    [
        ("import no_such_library", "broken:X", "of the package broken 1.0 cannot be imported: ModuleNotFoundError"),
        ("", "broken:X", "cannot be imported: AttributeError"),
        ("X = 1", "broken:X", "is neither a class nor an EngineEntry: broken:X"),
    ],
)
def test_a_package_that_is_broken_is_named(
    code: str, target: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "broken", "broken", code, broken=target)
    monkeypatch.delitem(__import__("sys").modules, "broken", raising=False)
    with pytest.raises(InvalidRequest, match=re.escape(told)):
        find_entry("broken")
    assert schema(), "and breaks nothing else"
