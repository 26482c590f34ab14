"""Every engine keeps the contract. A new engine is a row in `SUBJECTS`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from sightline.config import PEEK, ModelConfig
from sightline.engines import Engine, load_engine, open_engine
from sightline.engines.worker import WorkerEngine
from sightline.testing import CLAUSES, ISOLATED_CLAUSES, Clause, Subject, answer, ask, picture
from sightline.types import Image

PICTURES = Path(__file__).parent.parent.parent / "examples" / "pictures"


async def fake_sees(engine: Engine) -> None:
    red = picture(engine.info, 64, 48, (255, 0, 0))
    blue = picture(engine.info, 32, 32, (0, 0, 255))
    for first, second, expected in (
        (red, blue, "64x48 mostly red; 32x32 mostly blue"),
        (blue, red, "32x32 mostly blue; 64x48 mostly red"),
    ):
        text, _ = await answer(engine, ask(first, "and", second))
        assert expected in text
    pixels = red.pixels.copy()
    pixels[: pixels.shape[0] // 2, : pixels.shape[1] // 2] = (255, 255, 255)
    corner, _ = await answer(engine, ask(Image(pixels, "sha256:corner", 64, 48, "image/png", 9)))
    assert "mostly red (top left white)" in corner


def shown(engine: Engine, name: str) -> Image:
    """A picture of the examples, served as the intake would serve it."""
    assert engine.info.vision is not None
    with PILImage.open(PICTURES / name) as file:
        upright = file.convert("RGB")
    size = engine.info.vision.serve(*upright.size)[:2]
    pixels = np.asarray(upright.resize(size, PILImage.Resampling.BICUBIC))
    return Image(np.ascontiguousarray(pixels), f"sha256:{name}", *upright.size, "image/png", 1000)


async def peek_sees(engine: Engine) -> None:
    blue, yellow = shown(engine, "blue-square.jpg"), shown(engine, "yellow-star.png")
    for pictures, colours in (((blue, yellow), ("blue", "yellow")), ((yellow, blue), ("yellow", "blue"))):
        for which, expected in zip(("first", "second"), colours, strict=True):
            question = f"What colour is the shape in the {which} picture?"
            text, _ = await answer(engine, ask(*pictures, question, max_tokens=8))
            assert text == expected


FAKE = ModelConfig(name="fake", engine="fake", options={"context_length": 600, "step_s": 0.001})
FAKE_SPECIALS = ("<|im_start|>", "<|image_pad|>", "<|im_end|>")
QWEN2_SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip
# A shorter context than the model's own, because some clauses fill it.
PEEK_CONFIG = ModelConfig(name=PEEK, options={"context_length": 512})
PEEK_ON_TRANSFORMERS = ModelConfig(name=PEEK, engine="transformers", options={"context_length": 512, "threads": 1})

SUBJECTS = [
    Subject("fake, in process", FAKE, load_engine, fake_sees, FAKE_SPECIALS),
    Subject("fake", FAKE, open_engine, fake_sees, FAKE_SPECIALS),
    Subject(
        "openvino", PEEK_CONFIG, open_engine, peek_sees, QWEN2_SPECIALS,
        needs=PEEK_CONFIG.path / "openvino_language_model.xml",
    ),
    # Half of a cold start is importing torch and transformers.
    Subject(
        "transformers", PEEK_ON_TRANSFORMERS, open_engine, peek_sees, QWEN2_SPECIALS, back_within_s=20.0,
    ),
]  # fmt: skip
REFERENCE_ONLY = {"transformers"}
"""Engines that need an environment of their own: `make test-engines` has it."""


def parameter(subject: Subject) -> Any:
    marks = [pytest.mark.engine_reference] if subject.name in REFERENCE_ONLY else []
    return pytest.param(subject, id=subject.name, marks=marks)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """The engines live for the whole module, and with them their event loop."""
    return "asyncio"


@pytest.fixture(scope="module", params=map(parameter, SUBJECTS))
def subject(request: pytest.FixtureRequest) -> Subject:
    chosen: Subject = request.param
    if chosen.needs is not None and not chosen.needs.exists():
        pytest.skip(f"{chosen.needs.name} is not there")
    return chosen


@pytest.fixture(scope="module")
async def engine(subject: Subject, anyio_backend: str) -> AsyncIterator[Engine]:
    async with subject.running() as engine:
        yield engine


@pytest.mark.anyio
@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.__name__)
async def test_contract(clause: Clause, subject: Subject, engine: Engine) -> None:
    async with asyncio.timeout(100):
        await clause(subject, engine)


@pytest.mark.anyio
@pytest.mark.timeout(300)
@pytest.mark.parametrize("clause", ISOLATED_CLAUSES, ids=lambda clause: clause.__name__)
async def test_contract_of_isolated_engines(clause: Clause, subject: Subject, engine: Engine) -> None:
    if not isinstance(engine, WorkerEngine):
        pytest.skip("runs in this process")
    async with asyncio.timeout(280):
        await clause(subject, engine)
