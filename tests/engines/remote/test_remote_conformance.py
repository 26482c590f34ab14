"""The engine contract, of a model behind our own server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import msgspec
import pytest

from sightline.config import PEEK, ModelConfig
from sightline.engines import Engine, open_engine
from sightline.engines.fake import FakeEngine
from sightline.images.budget import CellBudget
from sightline.testing import CLAUSES, Clause, Subject, answer, ask, picture
from tests.engines.remote.serving import serving
from tests.engines.test_conformance import FAKE, FAKE_SPECIALS, PEEK_CONFIG, QWEN2_SPECIALS, peek_sees


async def fake_sees(engine: Engine) -> None:
    """It is told the size that we served, and says what it saw."""
    red, blue = picture(engine.info, 640, 480, (255, 0, 0)), picture(engine.info, 100, 100, (0, 0, 255))
    seen = {image: f"{image.served_width}x{image.served_height}" for image in (red, blue)}
    for pictures, colours in (((red, blue), ("red", "blue")), ((blue, red), ("blue", "red"))):
        text, _ = await answer(engine, ask(pictures[0], "and", pictures[1]))
        assert "; ".join(f"{seen[i]} mostly {c}" for i, c in zip(pictures, colours, strict=True)) in text


def budget_of(vision: CellBudget) -> dict[str, Any]:
    return msgspec.to_builtins(vision)  # type: ignore[no-any-return]


def remote(base_url: str, model: str, features: frozenset[str], vision: Any) -> ModelConfig:
    options = {"base_url": base_url, "kind": "sightline", "features": sorted(features), "budget": budget_of(vision)}
    return ModelConfig(name=model, engine="remote", options=options)


@contextmanager
def remote_fake() -> Iterator[Subject]:
    info = FakeEngine(FAKE).info
    options = [f"--option={key}={value}" for key, value in FAKE.options.items()]
    with serving("--engine", "fake", *options) as base_url:
        config = remote(base_url, "fake", info.features, info.vision)
        yield Subject("remote fake", config, open_engine, fake_sees, FAKE_SPECIALS)


PEEK_FEATURES = frozenset(
    {
        "seed", "top_k", "min_p", "penalties", "logit_bias", "logprobs", "min_tokens", "ignore_eos", "stop_token_ids"
    }
)  # fmt: skip


@contextmanager
def remote_peek() -> Iterator[Subject]:
    pixels = msgspec.json.decode((PEEK_CONFIG.path / "preprocessor_config.json").read_bytes())
    vision = CellBudget(28, pixels["min_pixels"], pixels["max_pixels"])
    with serving(f"--option=context_length={PEEK_CONFIG.options['context_length']}") as base_url:
        config = remote(base_url, PEEK, PEEK_FEATURES, vision)
        yield Subject("remote peek", config, open_engine, peek_sees, QWEN2_SPECIALS)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


class Row(NamedTuple):
    name: str
    """As the table of `make test-engines` shows it."""
    open: Callable[[], AbstractContextManager[Subject]]


ROWS = [Row("remote fake", remote_fake), Row("remote peek", remote_peek)]


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: row.name)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    row: Row = request.param
    with row.open() as subject:
        yield subject


@pytest.fixture(scope="module")
async def engine(subject: Subject, anyio_backend: str) -> AsyncIterator[Engine]:
    async with subject.running() as engine:
        yield engine


@pytest.mark.anyio
@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.__name__)
async def test_contract(clause: Clause, subject: Subject, engine: Engine) -> None:
    async with asyncio.timeout(100):
        await clause(subject, engine)
