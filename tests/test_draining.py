"""A server that is told to stop: what it refuses, what it waits for, what it cuts short."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator

import pytest

from sightline.api.inside import execute
from sightline.config import ModelConfig, Settings
from sightline.draining import Draining
from sightline.engines.fake import FakeEngine
from sightline.errors import EngineUnavailable, Overloaded
from sightline.items import ChoiceEvent
from sightline.jobs import Item, Lease
from sightline.routing import BACKGROUND
from sightline.service import Service
from sightline.types import ChatRequest, ImageRef, Message, Text, TextDelta
from tests.api.standin import Call, ScriptedService, app_of, chat, post

pytestmark = pytest.mark.anyio


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_it_is_idle_when_the_last_work_is_done() -> None:
    draining = Draining()
    await asyncio.wait_for(draining.idle(), 1)
    with draining.under_way():
        waiting = asyncio.create_task(draining.idle())
        with draining.under_way():
            await settle()
        await settle()
        assert not waiting.done()
    await asyncio.wait_for(waiting, 1)


def test_it_refuses_from_its_beginning_on_with_a_time() -> None:
    draining = Draining()
    draining.refuse()
    draining.begin()
    with pytest.raises(Overloaded) as refused:
        draining.refuse()
    assert 1 <= refused.value.retry_after_s <= 120


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/chat/completions", 503),
        ("/v1/responses", 503),
        ("/v1/messages", 529),
        ("/api/chat", 503),
        ("/v1/files", 503),
        ("/no/such/path", 503),
    ],
)
async def test_new_requests_are_refused_in_the_shape_of_their_dialect(path: str, status: int) -> None:
    service = ScriptedService()
    service.draining.begin()
    reply = await post(app_of(service), chat(), path)
    assert reply.status == status
    assert 1 <= int(reply.headers["retry-after"]) <= 120
    assert reply.headers["connection"] == "close"
    assert "being stopped" in json.dumps(reply.json)
    assert service.requests == []


async def test_what_there_is_may_still_be_read_and_probes_are_answered() -> None:
    service = ScriptedService()
    app = app_of(service)
    assert "connection" not in (await Call("GET", "/v1/models").run(app)).headers
    service.draining.begin()
    for path in ("/v1/models", "/health", "/metrics"):
        reply = await Call("GET", path).run(app)
        assert (reply.status, reply.headers["connection"]) == (200, "close")


def request(text: str, **fields: int) -> ChatRequest:
    return ChatRequest("r", "m", (Message[ImageRef]("user", (Text(text),)),), **fields)  # type: ignore[arg-type]


async def serving(drain_s: float) -> Service:
    model = ModelConfig(name="m", engine="fake", options={"step_s": 0.005}, max_concurrent=4)
    service = Service(Settings(models=(model,), drain_s=drain_s), engines={"m": FakeEngine(model)})
    await service.start()
    return service


async def texts(stream: AsyncGenerator[object, None]) -> list[str]:
    said = [item.event async for item in stream if isinstance(item, ChoiceEvent)]
    return [event.text for event in said if isinstance(event, TextDelta)]


async def test_the_service_drains_when_its_answers_are_whole() -> None:
    service = await serving(drain_s=10)
    answers = [asyncio.create_task(texts(service.generate(request(f"[[fake: length {n}]]")))) for n in (5, 20)]
    await settle()
    assert service.ready()
    draining = asyncio.create_task(service.drain())
    await settle()
    assert not service.ready()
    assert not draining.done()
    await asyncio.wait_for(draining, 5)
    assert [len(await answer) for answer in answers] == [5, 20]
    await service.close()


async def test_what_takes_longer_than_it_may_is_told_so() -> None:
    service = await serving(drain_s=0)
    answer = asyncio.create_task(texts(service.generate(request("[[fake: slow 60]]"))))
    await settle()
    await asyncio.wait_for(service.drain(), 5)
    with pytest.raises(EngineUnavailable, match="stopped"):
        await answer
    await service.close()


async def test_nobody_waits_for_a_line_of_a_batch() -> None:
    service = await serving(drain_s=10)
    line = asyncio.create_task(texts(service.generate(request("[[fake: slow 60]]", priority=BACKGROUND))))
    await settle()
    await asyncio.wait_for(service.drain(), 1)
    assert not line.done()
    line.cancel()
    await asyncio.wait([line])
    await service.close()


async def test_a_line_that_comes_while_it_drains_is_left_to_the_next_server() -> None:
    service = ScriptedService()
    service.draining.begin()
    line = Lease(Item(0, "c-0", json.dumps(chat()).encode()), "batch_1", "", "/v1/chat/completions", 1, 1)
    answer = await execute(app_of(service), line)
    assert (answer.status_code, answer.retryable, answer.began) == (503, True, False), "no failed try of it"
    assert service.requests == []
