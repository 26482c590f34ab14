"""EasyDeL itself, on JAX's CPU backend at float32, with `peek`: the engine contract.

`sightline engine install easydel --cpu` makes an environment, `SIGHTLINE_EASYDEL_PYTHON` names its Python; the engine
runs there, and this does not. Starting takes a minute or more, and every new size of picture some seconds.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator

import pytest

from sightline.config import PEEK, ModelConfig
from sightline.engines import Engine, open_engine
from sightline.testing import CLAUSES, Clause, Subject
from tests.engines.test_conformance import QWEN2_SPECIALS, peek_sees

SWITCH = "SIGHTLINE_EASYDEL_PYTHON"
OPTIONS = {"context_length": 512, "device": "cpu", "step_tokens": 64, "kv_cache_mib": 256}
"""Less than a CPU would take, because each length of a step is compiled."""
SUBJECT = Subject(
    "easydel",
    ModelConfig(name=PEEK, engine="easydel", python=os.environ.get(SWITCH), options=OPTIONS, start_timeout_s=900.0),
    open_engine,
    peek_sees,
    QWEN2_SPECIALS,
)

pytestmark = [
    pytest.mark.engine_reference,
    pytest.mark.anyio,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(SWITCH not in os.environ, reason=f"{SWITCH} names no environment"),
]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=[SUBJECT], ids=lambda subject: subject.name)
def subject(request: pytest.FixtureRequest) -> Subject:
    chosen: Subject = request.param
    return chosen


@pytest.fixture(scope="module")
async def engine(subject: Subject, anyio_backend: str) -> AsyncIterator[Engine]:
    async with subject.running() as engine:
        yield engine


@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.__name__)
async def test_contract(clause: Clause, subject: Subject, engine: Engine) -> None:
    async with asyncio.timeout(900):
        await clause(subject, engine)
