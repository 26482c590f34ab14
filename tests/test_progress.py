"""How far a model has loaded: told by its engine, through its process, to whoever asks for the model."""

from __future__ import annotations

import asyncio

import pytest

from sightline.api.models import to_model
from sightline.config import PEEK, ModelConfig, Settings
from sightline.engines.openvino import OpenVINOEngine
from sightline.service import Service

pytestmark = pytest.mark.anyio


async def test_progress_rises_while_loading_and_is_whole_when_ready() -> None:
    models = (ModelConfig(name="slow", engine="fake", options={"startup_s": 1.0}),)
    service = Service(Settings(models=models))
    told: list[float] = []
    assert to_model(service.models()[0]).sightline.progress is None
    await service.start(wait=False)
    try:
        async with asyncio.timeout(30):
            while (status := service.models()[0]).state == "loading":
                progress = to_model(status).sightline.progress
                if progress is not None and progress not in told:
                    told.append(progress)
                await asyncio.sleep(0.01)
        assert to_model(service.models()[0]).sightline.progress == 1.0
    finally:
        await service.close()
    assert told == sorted(told)
    assert len(told) >= 3
    assert 0.0 <= told[0] < 0.5 < told[-1] <= 1.0


async def test_our_own_engine_tells_what_part_of_the_weights_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OpenVINOEngine(ModelConfig(name=PEEK))
    told: list[float] = []
    monkeypatch.setattr(engine, "_count", told.append)
    assert engine.progress == 0.0
    await engine.start()
    await engine.close()
    assert len(told) == 3, "the language model and two of vision, side by side"
    assert 0.0 < min(told) < max(told) == 1.0
