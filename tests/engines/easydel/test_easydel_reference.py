"""EasyDeL itself, on JAX's CPU backend at float32, with `peek`: the engine contract, and the reference's answers.

`sightline engine install easydel --cpu` makes an environment, `SIGHTLINE_EASYDEL_PYTHON` names its Python; the engine
runs there, and this does not. Starting takes a minute or more, and every new size of picture some seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from sightline.config import PEEK, ModelConfig
from sightline.engines import Engine, open_engine
from sightline.images.budget import CellBudget
from sightline.testing import CLAUSES, Clause, Subject, answer
from tests.engines.reference.pairs import GOLDEN, committed_pairs, serve
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


async def test_it_answers_as_the_reference_does(engine: Engine) -> None:
    """Greedy, on the golden pairs whose pictures have one of the three commonest sizes, or that have none: JAX compiles
    for each size."""
    assert isinstance(engine.info.vision, CellBudget)
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))["pairs"]
    commonest = Counter(str(pair["ours"]["grid"]) for pair in golden if pair["scenes"]).most_common(3)
    sizes = {"[]", *(size for size, _ in commonest)}
    expected = {pair["id"]: pair["ours"]["text"] for pair in golden if str(pair["ours"]["grid"]) in sizes}
    pairs = [pair for pair in committed_pairs() if pair.id in expected]
    assert len(pairs) > 20
    images = await serve(pairs, engine.info.vision)
    differ = []
    for pair, pictures in zip(pairs, images, strict=True):
        request = pair.to_request(pictures, model=PEEK)
        plain = replace(request, sampling=replace(request.sampling, logprobs=None))
        text, _ = await answer(engine, plain)
        if text != expected[pair.id]:
            differ.append((pair.id, text, expected[pair.id]))
    assert differ == []
