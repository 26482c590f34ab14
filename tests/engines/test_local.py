"""The life that engines in this process share, on one that loads what a test gives it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import pytest

from sightline.config import ModelConfig
from sightline.engines import EngineInfo
from sightline.engines.checkpoint import CheckpointError
from sightline.engines.local import LocalEngine, read_options
from sightline.errors import EngineUnavailable, InvalidRequest
from sightline.images.checkpoint import BudgetError

pytestmark = pytest.mark.anyio


@dataclass
class Model:
    info: EngineInfo
    closed: int = 0

    def close(self) -> None:
        self.closed += 1


class Loads(LocalEngine[Model]):
    def __init__(self, load: Callable[[], Model]) -> None:
        super().__init__(ModelConfig(name="m", engine="nice"))
        self._given = load

    def _load(self) -> Model:
        self._count(0.5)
        return self._given()


async def test_it_runs_from_start_to_close() -> None:
    model = Model(EngineInfo("nice", 10))
    engine = Loads(lambda: model)
    with pytest.raises(EngineUnavailable, match="not running"):
        _ = engine.info
    await engine.start()
    assert engine.info is model.info
    engine._count(0.25)
    assert engine.progress == 0.5, "what comes late counts no less"
    await engine.close()
    await engine.close()
    assert model.closed == 1
    with pytest.raises(EngineUnavailable, match="not running"):
        _ = engine.info


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (CheckpointError("config.json: a JSON object is wanted"), "'m' cannot be loaded: config.json: a JSON object"),
        (BudgetError("no rule"), "'m' cannot be loaded: no rule"),
        (OSError("disk"), "'m' cannot be loaded: disk"),
        (TypeError("a list"), "'m' cannot be loaded: a list"),
        (ImportError("No module named 'x'"), r"needs a package: No module named 'x'. .*'sightline\[nice\]'"),
    ],
)
async def test_what_keeps_a_model_from_loading_is_told(raised: Exception, told: str) -> None:
    def load() -> Model:
        raise raised

    with pytest.raises(EngineUnavailable, match=told):
        await Loads(load).start()


async def test_what_is_loaded_after_close_is_freed() -> None:
    model, asked, go = Model(EngineInfo("nice", 10)), threading.Event(), threading.Event()

    def load() -> Model:
        asked.set()
        assert go.wait(60)
        return model

    engine = Loads(load)
    starting = asyncio.create_task(engine.start())
    await asyncio.to_thread(asked.wait, 60)
    await engine.close()
    go.set()
    with pytest.raises(EngineUnavailable, match="closed while it was loading"):
        await starting
    assert model.closed == 1


def test_options_are_read_strictly() -> None:
    class Options(msgspec.Struct, forbid_unknown_fields=True):
        size: int = 1

    assert read_options(ModelConfig(name="m", options={"size": "3"}), Options).size == 3, "from an environment's text"
    with pytest.raises(InvalidRequest, match=r"^Engine options: .*sizes.*") as failed:
        read_options(ModelConfig(name="m", options={"sizes": 3}), Options)
    assert failed.value.param == "options"
