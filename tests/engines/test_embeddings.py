"""Vectors of texts: what those of the engine without a model mean, and that a process in between changes none."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest

from sightline.config import ModelConfig
from sightline.engines import Embeds, Engine, load_engine, open_engine
from sightline.errors import ContextLengthExceeded, EngineUnavailable, InvalidRequest, SightlineError
from sightline.types import EmbeddingRequest, Embeddings

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[load_engine, open_engine], ids=["in process", "in a worker"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    engine = request.param(ModelConfig(name="fake", engine="fake", options={"context_length": 20}))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def embed(engine: Engine, *inputs: str | tuple[int, ...], dimensions: int | None = None) -> Embeddings:
    assert isinstance(engine, Embeds)
    assert "embeddings" in engine.info.work
    return await engine.embed(EmbeddingRequest("r", "fake", inputs, dimensions))


async def test_similar_texts_are_nearer(engine: Engine) -> None:
    vectors = (await embed(engine, "a red circle", "two red circles", "the tax return")).vectors
    assert vectors.shape == (3, 64)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > 0.4 > 0.25 > far


async def test_the_same_text_has_the_same_vector_wherever_it_stands(engine: Engine) -> None:
    alone, among = await embed(engine, "blue"), await embed(engine, "red", "blue")
    assert np.array_equal(alone.vectors[0], among.vectors[1])
    assert np.array_equal((await embed(engine, tuple(map(ord, "blue")))).vectors, alone.vectors)


async def test_fewer_dimensions_are_the_first_ones_made_as_long_again(engine: Engine) -> None:
    whole, cut = (await embed(engine, "blue")).vectors[0], (await embed(engine, "blue", dimensions=8)).vectors[0]
    assert np.allclose(cut, whole[:8] / np.linalg.norm(whole[:8]), atol=1e-6)


async def test_tokens_are_counted(engine: Engine) -> None:
    assert (await embed(engine, "two words", "three more words", (104, 105))).prompt_tokens == 2 + 3 + 2


@pytest.mark.parametrize(
    ("inputs", "dimensions", "error", "param"),
    [
        (("blue",), 65, InvalidRequest, "dimensions"),
        (("blue " * 21,), None, ContextLengthExceeded, "input"),
        (((0xD800,),), None, InvalidRequest, "input"),
    ],
)
async def test_what_cannot_be_is_told(
    engine: Engine, inputs: tuple[str, ...], dimensions: int | None, error: type[SightlineError], param: str
) -> None:
    with pytest.raises(error) as refused:
        await embed(engine, *inputs, dimensions=dimensions)
    assert refused.value.param == param


async def test_after_the_end_there_are_none(engine: Engine) -> None:
    await engine.close()
    with pytest.raises(EngineUnavailable):
        await embed(engine, "blue")
