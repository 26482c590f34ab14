"""What only llama.cpp itself can show: it comes back, samples as asked, keeps to a schema, sees with any weights."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from sightline.config import PEEK, ModelConfig
from sightline.engines import Engine, load_engine
from sightline.engines.llamacpp import LlamaCppEngine
from sightline.engines.llamacpp.convert import WEIGHT_TYPES, convert
from sightline.engines.openvino.export import export
from sightline.errors import EngineError, EngineUnavailable
from sightline.testing import answer, ask, collect, lives, long, patience, picture, served
from sightline.types import EngineRequest, Image, Message, ResponseFormat, Role, Text, TextDelta
from tests.engines.llamacpp.test_gguf import checkpoint_with
from tests.engines.test_conformance import peek_sees

pytestmark = [pytest.mark.engine_reference, pytest.mark.anyio]

BACK_WITHIN_S = 3.0


def config(directory: Path, **options: object) -> ModelConfig:
    both = {"context_length": 512, "threads": 1, "slots": 4, **options}
    return ModelConfig(name=PEEK, engine="llamacpp", source=str(directory), options=both)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def gguf_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gguf")
    convert(ModelConfig(name=PEEK).path, directory, "f16")
    return directory


@pytest.fixture(scope="module")
async def engine(gguf_dir: Path, anyio_backend: str) -> AsyncIterator[LlamaCppEngine]:
    engine = LlamaCppEngine(config(gguf_dir))
    await engine.start()
    yield engine
    await engine.close()


@pytest.mark.parametrize("weights", WEIGHT_TYPES)
async def test_it_sees_with_weights_of_any_type(weights: str, tmp_path: Path) -> None:
    convert(ModelConfig(name=PEEK).path, tmp_path, weights)  # type: ignore[arg-type]  # one of WEIGHT_TYPES
    engine = LlamaCppEngine(config(tmp_path))
    await engine.start()
    try:
        await peek_sees(engine)
    finally:
        await engine.close()


async def test_a_shallow_tower_and_a_head_of_its_own_give_what_ours_gives(tmp_path: Path) -> None:
    """Another model than `peek`: untied, two blocks deep, random. llama.cpp's own converter cannot write its tower."""
    checkpoint_with(tmp_path / "tiny")
    convert(tmp_path / "tiny", tmp_path / "gguf", "f32")
    export(tmp_path / "tiny", tmp_path / "ir")
    theirs = LlamaCppEngine(config(tmp_path / "gguf", kv_cache_type="f32", flash_attention=False))
    ours = load_engine(ModelConfig(name="tiny", source=str(tmp_path / "ir")))
    await theirs.start()
    await ours.start()
    try:
        chance = np.random.default_rng(1)
        for side in (60, 90, 130):
            plain = picture(theirs.info, side, 80)
            noise = replace(plain, pixels=chance.integers(0, 256, plain.pixels.shape, np.uint8))
            for request in (ask(noise, "what is it?"), ask(f"hello {side}")):
                told = [await first_logprob(engine, request) for engine in (theirs, ours)]
                assert told[0] == pytest.approx(told[1], abs=0.005)
    finally:
        await theirs.close()
        await ours.close()


async def first_logprob(engine: Engine, request: EngineRequest) -> float:
    """Of one letter, pushed so far up that it is said whatever the model would say."""
    letter = 65 - 33  # byte-level vocabularies begin with "!"
    pushed = replace(request.sampling, logprobs=0, max_tokens=1, logit_bias={letter: 30.0})
    *deltas, _ = await collect(engine, replace(request, sampling=pushed))
    (told,) = [p for delta in deltas if isinstance(delta, TextDelta) for p in delta.logprobs]
    assert bytes(told.bytes) == b"A"
    return told.logprob


async def test_killed_it_answers_again(gguf_dir: Path) -> None:
    engine = LlamaCppEngine(config(gguf_dir))
    await engine.start()
    try:
        request = long(ask(picture(engine.info, 100, 100), "and now?"), 5)
        expected = await served(engine, request)
        for moment in ("idle", "decode"):
            if moment == "decode":
                async with aclosing(engine.generate(long(ask("Tell me more."), None))) as events:
                    await anext(events)
                    kill(engine)
                    with pytest.raises(EngineError) as error:
                        async for _ in events:
                            pass
                    assert error.value.died is not None, "its pictures are suspects"
            else:
                kill(engine)
            died = time.perf_counter()
            assert await again(engine, request) == expected
            assert time.perf_counter() - died < BACK_WITHIN_S * patience()
        assert (engine.state, engine.restarts) == ("ready", 2)
    finally:
        await engine.close()


def kill(engine: LlamaCppEngine) -> None:
    """The server itself, by what its guard leads."""
    assert engine.pid is not None
    (server,) = psutil.Process(engine.pid).children()
    os.kill(server.pid, signal.SIGKILL)


async def again(engine: LlamaCppEngine, request: object) -> str:
    """Until it is noticed that the server is dead, requests find nobody there."""
    async with asyncio.timeout(30.0):
        while True:
            try:
                return (await answer(engine, request))[0]  # type: ignore[arg-type]
            except EngineError:
                await asyncio.sleep(0.02)


async def test_closed_it_leaves_no_process(gguf_dir: Path) -> None:
    engine = LlamaCppEngine(config(gguf_dir))
    await engine.start()
    assert engine.pid is not None
    guard = psutil.Process(engine.pid)
    processes = [guard, *guard.children(recursive=True)]
    assert len(processes) == 2
    began = time.perf_counter()
    await engine.close()
    assert time.perf_counter() - began < 3.0 * patience()
    assert not any(lives(process) for process in processes)


async def test_a_text_like_its_media_marker_is_no_picture(engine: LlamaCppEngine) -> None:
    """The marker is another one each start, and never told to anyone."""
    count = await engine.count_tokens(ask("a <__media__> b"))
    assert count.image_tokens == ()
    _, finish = await answer(engine, long(ask("a <__media__> b"), 2))
    assert finish.usage.prompt_tokens == count.prompt_tokens


async def test_two_ways_to_write_a_letter_are_one(engine: LlamaCppEngine) -> None:
    counts = [await engine.count_tokens(ask(text)) for text in ("cafe\u0301", "caf\u00e9")]
    assert counts[0] == counts[1]


async def test_after_the_assistant_comes_another_turn(engine: LlamaCppEngine) -> None:
    """llama.cpp would go on with the assistant's last words, where every other engine begins anew."""

    def said_by(role: Role) -> EngineRequest:
        first = ask("hello", max_tokens=4)
        return replace(first, messages=(*first.messages, Message[Image](role, (Text("x"),))))

    counts = [await engine.count_tokens(said_by(role)) for role in ("assistant", "user")]
    assert counts[0] == counts[1], "the names of both roles are one token"


async def test_greedy_by_other_means(engine: LlamaCppEngine) -> None:
    """Where only the likeliest token is kept, or one is made certain, no temperature matters."""
    request = long(ask("Tell me more."), 8)
    expected, _ = await answer(engine, request)
    for sampling in ({"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6}):
        hot = replace(request, sampling=replace(request.sampling, temperature=2.0, seed=7, **sampling))
        assert (await answer(engine, hot))[0] == expected, sampling


async def test_temperature_comes_before_top_p(engine: LlamaCppEngine) -> None:
    """A temperature near 0 leaves one token to top_p; the other way round, top_p would have kept more."""
    request = long(ask("Tell me more."), 8)
    expected, _ = await answer(engine, request)
    cold = replace(request, sampling=replace(request.sampling, temperature=0.01, top_p=0.9999, seed=3))
    assert (await answer(engine, cold))[0] == expected


async def test_a_bias_chooses(engine: LlamaCppEngine) -> None:
    *deltas, _ = await collect(engine, ask("Is red a colour?", max_tokens=1, logprobs=3))
    (delta,) = deltas
    assert isinstance(delta, TextDelta)
    vocabulary = json.loads((ModelConfig(name=PEEK).path / "tokenizer.json").read_text())["model"]["vocab"]
    for token in ("red", "three"):
        if token in vocabulary:
            text, _ = await answer(engine, ask("Is red a colour?", max_tokens=1, logit_bias={vocabulary[token]: 100.0}))
            assert text == token


async def test_a_logprob_alone_is_told_alone(engine: LlamaCppEngine) -> None:
    *deltas, _ = await collect(engine, long(ask("Tell me more.", logprobs=0), 3))
    told = [logprob for delta in deltas if isinstance(delta, TextDelta) for logprob in delta.logprobs]
    assert len(told) == 3
    assert all(logprob.top == () and logprob.logprob <= 0 for logprob in told)


async def test_an_answer_keeps_to_its_schema(engine: LlamaCppEngine) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    request = replace(ask("How many?", max_tokens=200), response_format=ResponseFormat("json_schema", schema=schema))
    text, _ = await answer(engine, request)
    assert json.loads(text)["n"] in (1, 2)


async def test_only_one_tenant_s_prompts_are_reused(gguf_dir: Path) -> None:
    engine = LlamaCppEngine(config(gguf_dir, slots=1))
    await engine.start()
    try:
        request = ask(picture(engine.info, 160, 160), "What colour is it?", max_tokens=2)
        cached = []
        for tenant in ("a", "a", "b", "a"):
            _, finish = await answer(engine, replace(request, tenant=tenant))
            cached.append(finish.usage.cached_tokens)
        assert cached[0] == 0
        assert cached[1] > 25
        assert cached[2:] == [0, 0]
    finally:
        await engine.close()


async def test_without_a_tower_pictures_are_refused(gguf_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").symlink_to(gguf_dir / "model-f16.gguf")
    engine = LlamaCppEngine(config(tmp_path))
    await engine.start()
    try:
        assert engine.info.vision is None
        assert (await answer(engine, long(ask("hello"), 2)))[1].reason == "length"
    finally:
        await engine.close()


async def test_a_file_that_llama_cpp_does_not_load_is_told(gguf_dir: Path, tmp_path: Path) -> None:
    """Whole enough to be read here, and cut off in the weights."""
    whole = (gguf_dir / "model-f16.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[: len(whole) // 2])
    engine = LlamaCppEngine(config(tmp_path))
    with pytest.raises(EngineUnavailable):
        await engine.start()
    assert engine.state == "failed"
