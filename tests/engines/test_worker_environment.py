"""What an engine's process sees of our environment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import psutil
import pytest

from sightline.config import ModelConfig
from sightline.engines import ENGINES
from sightline.engines.worker import WorkerEngine
from sightline.engines.worker.environment import child_environment

OURS = {
    "PATH": "/bin",
    "TZ": "UTC",
    "OPENAI_API_KEY": "a",
    "ANTHROPIC_API_KEY": "b",
    "HOME": "/home/ann",
    "HF_TOKEN": "c",
}


def seen(**options: Any) -> dict[str, str] | None:
    return child_environment(ModelConfig(name="m", engine="litellm", options=options), ENGINES["litellm"], OURS)


def test_only_what_is_named_and_what_any_program_needs() -> None:
    environment = ENGINES["litellm"].environment
    assert environment is not None
    assert seen() == {**environment, "PATH": "/bin", "TZ": "UTC"}
    assert seen(env=["OPENAI_API_KEY"]) == {**environment, "PATH": "/bin", "TZ": "UTC", "OPENAI_API_KEY": "a"}


def test_the_operators_word_is_last() -> None:
    assert (seen(env=["HOME", "NOT_SET"]) or {})["HOME"] == "/home/ann"


@pytest.mark.parametrize("env", [5, "OPENAI_API_KEY", {"OPENAI_API_KEY": 1}, [5, None]])
def test_what_is_no_list_of_names_names_nothing(env: object) -> None:
    """The engine refuses it; until then it has seen nothing."""
    assert not set(OURS.values()) - {"/bin", "UTC"} & set((seen(env=env) or {}).values())


def test_other_engines_see_all() -> None:
    assert child_environment(ModelConfig(name="m", engine="fake"), ENGINES["fake"], OURS) is None


@pytest.mark.anyio
async def test_a_process_has_never_had_what_it_may_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY_KEY", "canary-5678")
    monkeypatch.setitem(ENGINES, "fake", replace(ENGINES["fake"], environment={"HOME": "/nonexistent"}))
    engine = WorkerEngine(ModelConfig(name="m", engine="fake"))
    await engine.start()
    try:
        environ = psutil.Process(engine.pid).environ()
    finally:
        await engine.close()
    assert environ["HOME"] == "/nonexistent"
    assert "CANARY_KEY" not in environ
