"""Work that ends in one value: admitted, counted, tried again, handed on and ended like an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import pytest

from sightline.config import ModelConfig, Settings
from sightline.engines import EngineInfo, Work
from sightline.errors import (
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    SightlineError,
    UnsupportedFeature,
)
from sightline.items import Call, Called
from sightline.metrics import REGISTRY
from sightline.service import Service
from sightline.types import ChatRequest, EngineRequest, Event, TokenCount

pytestmark = pytest.mark.anyio

WORK: Work = "embeddings"


class Engine:
    """Gives its name when it is called, after the failures it was given; holds calls while `gate` is shut."""

    def __init__(self, name: str, *failures: Exception, work: frozenset[Work] = frozenset({WORK})) -> None:
        self.name = name
        self.info = EngineInfo(engine=name, context_length=100, work=work)
        self.failures = list(failures)
        self.calls = 0
        self.running = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def count_tokens(self, request: EngineRequest) -> TokenCount:
        raise NotImplementedError

    def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        raise NotImplementedError

    async def work(self) -> str:
        self.calls += 1
        self.running += 1
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        if self.failures:
            raise self.failures.pop(0)
        return self.name


@asynccontextmanager
async def serving(*engines: Engine, timeout_s: float = 5.0, **config: int) -> AsyncIterator[Service]:
    """The first falls back to the others."""
    names = [engine.name for engine in engines]
    models = tuple(
        ModelConfig(name=name, engine="fake", fallbacks=tuple(names[1:]) if name == names[0] else (), **config)  # type: ignore[arg-type]
        for name in names
    )
    service = Service(Settings(models=models, request_timeout_s=timeout_s), {e.name: e for e in engines})
    await service.start()
    try:
        yield service
    finally:
        await service.close()


def call(model: str = "a") -> Call[str]:
    async def run(engine: object) -> str:
        assert isinstance(engine, Engine)
        return await engine.work()

    return Call("request", model, WORK, run)


def counted(model: str, outcome: str) -> float:
    return REGISTRY.get_sample_value("sightline_requests_total", {"model": model, "outcome": outcome}) or 0.0


async def test_the_value_comes_back_with_who_gave_it() -> None:
    before = counted("a", "ok")
    async with serving(Engine("a")) as service:
        called = await service.call(call())
    assert (called.value, called.engine, called.path) == ("a", "a", ("a@0",))
    assert counted("a", "ok") == before + 1


async def test_a_failure_is_tried_once_more() -> None:
    engine = Engine("a", EngineFailed("once"))
    async with serving(engine) as service:
        called = await service.call(call())
    assert (called.path, engine.calls) == (("a@0", "a@0"), 2)


async def test_another_model_stands_in() -> None:
    engines = Engine("a", EngineFailed("once"), EngineFailed("twice")), Engine("b")
    async with serving(*engines) as service:
        called = await service.call(call())
    assert (called.value, called.path) == ("b", ("a@0", "a@0", "b@0"))


async def test_what_a_model_does_not_do_is_told_and_not_asked_of_another() -> None:
    engines = Engine("a", work=frozenset()), Engine("b")
    async with serving(*engines) as service:
        with pytest.raises(UnsupportedFeature, match="gives no embeddings") as refused:
            await service.call(call())
    assert (refused.value.param, engines[0].calls, engines[1].calls) == ("model", 0, 0)


async def test_one_that_does_not_do_it_is_passed_over() -> None:
    engines = Engine("a", EngineFailed("1"), EngineFailed("2")), Engine("b", work=frozenset()), Engine("c")
    async with serving(*engines) as service:
        assert (await service.call(call())).value == "c"


async def test_an_error_of_the_request_is_told_as_it_is() -> None:
    engine = Engine("a", InvalidRequest("too odd", param="input"))
    async with serving(engine, Engine("b")) as service:
        with pytest.raises(InvalidRequest, match="too odd"):
            await service.call(call())
    assert engine.calls == 1


async def test_a_model_that_is_not_there() -> None:
    async with serving(Engine("a")) as service:
        with pytest.raises(ModelNotFound):
            await service.call(call("nobody"))


async def test_the_deadline_ends_it_and_frees_the_slot() -> None:
    engine = Engine("a")
    engine.gate.clear()
    async with serving(engine, timeout_s=0.05, max_concurrent=1) as service:
        with pytest.raises(DeadlineExceeded):
            await service.call(call())
        assert engine.running == 0
        engine.gate.set()
        assert (await service.call(call())).value == "a"


async def test_a_client_that_leaves_frees_the_slot() -> None:
    engine = Engine("a")
    engine.gate.clear()
    async with serving(engine, max_concurrent=1) as service:
        task = asyncio.create_task(service.call(call()))
        while not engine.running:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert engine.running == 0
        engine.gate.set()
        assert (await service.call(call())).value == "a"


async def test_it_waits_for_a_slot_and_a_full_line_refuses() -> None:
    engine = Engine("a")
    engine.gate.clear()
    async with serving(engine, max_concurrent=1, max_queue=1) as service:
        tasks = [asyncio.create_task(service.call(call())) for _ in range(3)]
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert [type(task.exception()) for task in done] == [Overloaded]
        assert engine.calls == 1
        engine.gate.set()
        results: list[Called[str] | BaseException] = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(result, SightlineError) for result in results) == 1
    assert engine.calls == 2


@pytest.mark.parametrize(("prompt", "told"), [("go on", "completes no plain text"), (None, "answers no messages")])
async def test_requests_for_other_work_are_refused(prompt: str | None, told: str) -> None:
    async with serving(Engine("a")) as service:
        with pytest.raises(UnsupportedFeature, match=told) as refused:
            await anext(service.generate(ChatRequest(request_id="r", model="a", messages=(), prompt=prompt)))
    assert refused.value.param == "model"
