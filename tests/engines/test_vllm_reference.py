"""vLLM itself, on a CPU at float32, with `peek`: the engine contract, and pictures by name.

`sightline engine install vllm --cpu` makes an environment, `SIGHTLINE_VLLM_PYTHON` names its Python. Starting takes a
minute or more, so that clauses which want an engine of their own get one that is attached to the same server.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import NamedTuple

import msgspec
import pytest

from sightline.config import PEEK, ModelConfig
from sightline.engines import Engine, load_engine
from sightline.engines.remote import RemoteEngine
from sightline.engines.vllm import VllmEngine
from sightline.testing import CLAUSES, Clause, Subject, answer, ask, long, picture
from tests.engines.test_conformance import QWEN2_SPECIALS, peek_sees

SWITCH = "SIGHTLINE_VLLM_PYTHON"
CONTEXT = 512

pytestmark = [
    pytest.mark.engine_reference,
    pytest.mark.anyio,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(SWITCH not in os.environ, reason=f"{SWITCH} names no environment"),
]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def engine(anyio_backend: str) -> AsyncIterator[VllmEngine]:
    options = {
        "engine_kwargs": {
            "dtype": "float32",
            "max_model_len": CONTEXT,
            "enforce_eager": True,
            "max_num_seqs": 16,
            "enable_auto_tool_choice": True,
            "tool_call_parser": "hermes",
        },
        "environment": {"VLLM_CPU_KVCACHE_SPACE": "1"},
    }
    engine = VllmEngine(
        ModelConfig(name=PEEK, engine="vllm", python=os.environ[SWITCH], options=options, start_timeout_s=900.0)
    )
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


class Row(NamedTuple):
    name: str
    """As the table of `make test-engines` shows it."""


@pytest.fixture(scope="module", params=[Row("vllm")], ids=lambda row: row.name)
def subject(engine: VllmEngine) -> Subject:
    config = ModelConfig(name=PEEK, engine="vllm", start_timeout_s=60.0)

    def attach(config: ModelConfig) -> Engine:
        return RemoteEngine(config, options=engine._remote._options, address=engine._remote._address)

    return Subject("vllm", config, attach, peek_sees, QWEN2_SPECIALS)


@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.__name__)
async def test_contract(clause: Clause, subject: Subject, engine: VllmEngine) -> None:
    async with asyncio.timeout(300):
        await clause(subject, engine)


async def test_it_holds_pictures_by_their_names(engine: VllmEngine) -> None:
    request = ask(picture(engine.info, 200, 100, (1, 2, 3)), "What colour is it?", max_tokens=8)
    answers = [(await answer(engine, request))[0] for _ in range(3)]
    assert len(set(answers)) == 1
    remote = engine._remote
    assert remote._named(request)
    assert remote._held._misses == 0, "asked by name, it has answered"


async def test_it_answers_as_our_engine_does(engine: VllmEngine) -> None:
    """Greedy, token for token, on plain pictures of many sizes and colours."""
    ours = load_engine(ModelConfig(name=PEEK, options={"context_length": CONTEXT}))
    await ours.start()
    try:
        for index in range(12):
            colour = (index * 21 % 256, index * 77 % 256, index * 131 % 256)
            image = picture(ours.info, 60 + 37 * index, 300 - 17 * index, colour)
            request = long(ask(image, ("What colour is this?", "Describe the picture.")[index % 2]), 8)
            theirs, finish = await answer(engine, request)
            own, own_finish = await answer(ours, request)
            assert theirs == own, index
            assert msgspec.to_builtins(finish.usage.image_tokens) == msgspec.to_builtins(own_finish.usage.image_tokens)
            assert finish.usage.prompt_tokens == own_finish.usage.prompt_tokens
    finally:
        await ours.close()
