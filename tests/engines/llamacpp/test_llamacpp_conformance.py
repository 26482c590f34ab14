"""The engine contract, of the embedded model on llama.cpp."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import msgspec
import pytest

from sightline.config import PEEK, ModelConfig
from sightline.engines import Engine, open_engine
from sightline.engines.llamacpp.convert import convert
from sightline.testing import CLAUSES, Clause, Subject
from tests.engines.test_conformance import QWEN2_SPECIALS, peek_sees

pytestmark = pytest.mark.engine_reference

OPTIONS = {"context_length": 512, "slots": 16, "threads": 1, "kv_cache_type": "f32", "flash_attention": False}
"""A shorter context than the model's own, because some clauses fill it; one thread, which is enough for this model."""
SUBJECT = Subject(
    "llamacpp", ModelConfig(name=PEEK, engine="llamacpp", options=OPTIONS), open_engine, peek_sees, QWEN2_SPECIALS
)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=[SUBJECT], ids=lambda subject: subject.name)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    directory = tmp_path_factory.mktemp("gguf")
    convert(ModelConfig(name=PEEK).path, directory, "f32")
    chosen: Subject = request.param
    return replace(chosen, config=msgspec.structs.replace(chosen.config, source=str(directory)))


@pytest.fixture(scope="module")
async def engine(subject: Subject, anyio_backend: str) -> AsyncIterator[Engine]:
    async with subject.running() as engine:
        yield engine


@pytest.mark.anyio
@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.__name__)
async def test_contract(clause: Clause, subject: Subject, engine: Engine) -> None:
    async with asyncio.timeout(100):
        await clause(subject, engine)
