"""What the engine refuses, and why, and that who joins and leaves changes nobody's answer. Without a mark: no torch."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import sys
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.config import PEEK, ModelConfig
from sightline.engines import FEATURES, load_engine
from sightline.engines.transformers import TransformersEngine
from sightline.errors import ContextLengthExceeded, EngineUnavailable, InvalidRequest
from sightline.types import EngineRequest, Image, Message, SamplingParams, Text, TextDelta

needs_torch = pytest.mark.engine_reference
SHIPPED = ModelConfig(name=PEEK).path


def config(source: Path = SHIPPED, **options: Any) -> ModelConfig:
    return ModelConfig(name="m", engine="transformers", source=str(source), options={"threads": 1, **options})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtpye": "float32"}, "dtpye"),
        ({"dtype": "int8"}, "int8"),
        ({"quantization": "4bit"}, "4bit"),
        ({"device": "tpu"}, "tpu"),
        ({"max_batch": 0}, "max_batch is 0; it must be 1 or more"),
        ({"context_length": -1}, "context_length is -1"),
        ({"threads": -1}, "threads must be 0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        TransformersEngine(config(**options))


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("sightline.engines.transformers.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(EngineUnavailable, match=r"pip install 'sightline\[transformers\]'"):
        asyncio.run(load_engine(config()).start())


@needs_torch
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "cpu", "quantization": "bitsandbytes-4bit"}, "needs a CUDA GPU"),
        ({"device": "cpu", "quantization": "bitsandbytes-8bit"}, "needs a CUDA GPU"),
        ({"attn_implementation": "flash_attention_2"}, "(?i)flash"),
    ],
)
def test_what_this_machine_cannot_do_is_refused_with_a_reason(options: dict[str, Any], said: str) -> None:
    with pytest.raises(EngineUnavailable, match=said):
        asyncio.run(load_engine(config(**options)).start())


@needs_torch
def test_cuda_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineUnavailable, match="use device: cpu"):
        asyncio.run(load_engine(config(device="cuda")).start())


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    names = ("config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json")
    for name in (*names, "tokenizer_config.json", "chat_template.jinja", "model.safetensors"):
        shutil.copy(SHIPPED / name, tmp_path)
    return tmp_path


def starts(directory: Path, **options: Any) -> None:
    async def run() -> None:
        engine = load_engine(config(directory, **options))
        await engine.start()
        await engine.close()

    asyncio.run(run())


@needs_torch
def test_a_copy_of_the_shipped_checkpoint_starts(copied: Path) -> None:
    starts(copied)  # so that what the tests below take away is what they are refused for


@needs_torch
def test_pickled_weights_are_not_opened(copied: Path) -> None:
    import torch

    (copied / "model.safetensors").unlink()
    torch.save({}, copied / "pytorch_model.bin")
    with pytest.raises(EngineUnavailable, match="safetensors"):
        starts(copied)


@needs_torch
def test_a_checkpoint_s_own_code_is_not_run(copied: Path) -> None:
    settings = json.loads((copied / "config.json").read_text())
    (copied / "own.py").write_text(f"open({str(copied / 'ran')!r}, 'w').close()\nclass Own: pass\n")
    names = {"AutoConfig": "own.Own", "AutoModelForImageTextToText": "own.Own", "AutoProcessor": "own.Own"}
    (copied / "config.json").write_text(json.dumps({**settings, "model_type": "own", "auto_map": names}))
    with pytest.raises(EngineUnavailable, match="trust_remote_code"):
        starts(copied)
    assert not (copied / "ran").exists()


@needs_torch
@pytest.mark.parametrize(
    ("missing", "said"), [("chat_template.jinja", "chat template"), ("tokenizer.json", "tokenizer")]
)
def test_what_is_missing_is_named(missing: str, said: str, copied: Path) -> None:
    (copied / missing).unlink()
    if missing == "chat_template.jinja":
        settings = json.loads((copied / "tokenizer_config.json").read_text())
        settings.pop("chat_template", None)
        (copied / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(EngineUnavailable, match=said):
        starts(copied)


@needs_torch
def test_features_are_those_that_work() -> None:
    async def run() -> frozenset[str]:
        engine = load_engine(config())
        await engine.start()
        try:
            return engine.info.features
        finally:
            await engine.close()

    assert asyncio.run(run()) == FEATURES


# --- who joins and leaves --------------------------------------------------------------------------------------------


def picture(number: int) -> Image:
    pixels = np.random.default_rng(number).integers(0, 256, (112, 28 * (4 + number % 3), 3), np.uint8)
    return Image(pixels, f"sha256:{number}", pixels.shape[1], 112, "image/png", 9)


def to_request(number: int, **sampling: Any) -> EngineRequest:
    params = replace(SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=5 + 3 * (number % 7)), **sampling)
    parts: list[Text | Image] = [Text("What is " + "very " * (number % 11) + "big?")]
    if number % 4:
        parts.insert(0, picture(number))
    return EngineRequest("r", "m", (Message[Image]("user", tuple(parts)),), params)


async def text_of(engine: TransformersEngine, request: EngineRequest) -> str:
    return "".join([event.text async for event in engine.generate(request) if isinstance(event, TextDelta)])


async def with_company(engine: TransformersEngine, requests: Sequence[EngineRequest]) -> list[str]:
    """Answers to all, arriving at random, among others that leave again at random."""
    chance = random.Random(4)

    async def passer_by(number: int) -> None:
        await asyncio.sleep(chance.uniform(0.0, 0.3))
        async with aclosing(engine.generate(to_request(number, max_tokens=200))) as events:
            for _ in range(chance.randrange(1, 6)):
                await anext(events)

    async def late(request: EngineRequest) -> str:
        await asyncio.sleep(chance.uniform(0.0, 0.3))
        return await text_of(engine, request)

    others = [asyncio.create_task(passer_by(100 + number)) for number in range(12)]
    answers = await asyncio.gather(*map(late, requests))
    await asyncio.gather(*others)
    return answers


@needs_torch
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 7}], ids=["greedy", "seeded"])
def test_company_changes_no_answer(sampling: dict[str, Any]) -> None:
    requests = [to_request(number, **sampling) for number in range(16)]

    async def run() -> tuple[list[str], list[str]]:
        engine = TransformersEngine(config(max_batch=5))
        await engine.start()
        try:
            return [await text_of(engine, request) for request in requests], await with_company(engine, requests)
        finally:
            await engine.close()

    alone, among = asyncio.run(run())
    assert among == alone
    assert len(set(alone)) > 3


@needs_torch
def test_the_context_can_be_made_shorter_and_never_longer() -> None:
    async def run(length: int) -> int:
        engine = TransformersEngine(config(context_length=length))
        await engine.start()
        try:
            with pytest.raises(ContextLengthExceeded):
                await text_of(engine, to_request(0, max_tokens=engine.info.context_length))
            return engine.info.context_length
        finally:
            await engine.close()

    assert asyncio.run(run(100)) == 100
    assert asyncio.run(run(10**9)) == json.loads((SHIPPED / "config.json").read_text())["max_position_embeddings"]
