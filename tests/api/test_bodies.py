"""What clients send is held in memory up to a bound, however many they are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from sightline.api.app import create_app
from sightline.api.bodies import Bodies, hold
from sightline.config import HttpLimits, ModelConfig, Settings
from sightline.errors import Overloaded
from sightline.items import Item
from sightline.types import ChatRequest
from tests.api.standin import JSON_HEADERS, PREPARED, Call, ScriptedService, chat, post

pytestmark = pytest.mark.anyio


def test_room_is_there_again_when_a_request_has_ended() -> None:
    bodies, first, second = Bodies(100), {}, {}  # type: ignore[var-annotated]
    with bodies.around(first):
        hold(first, 70)
        with bodies.around(second):
            hold(second, 20)
            with pytest.raises(Overloaded, match="room"):
                hold(second, 20)
        with bodies.around(second):
            hold(second, 30)
    with bodies.around(second):
        hold(second, 100)


def test_one_that_is_alone_is_taken_whatever_its_size() -> None:
    bodies, scope = Bodies(10), {}  # type: ignore[var-annotated]
    with bodies.around(scope):
        hold(scope, 1000)


@pytest.mark.parametrize("tells_its_length", [True, False])
async def test_a_body_that_there_is_no_room_for_is_refused_and_the_others_are_served(tells_its_length: bool) -> None:
    gate = asyncio.Event()

    async def waits(request: ChatRequest) -> AsyncIterator[Item]:
        yield PREPARED
        await gate.wait()

    service = ScriptedService(waits)
    settings = Settings(models=(ModelConfig(name="m"),), http=HttpLimits(max_held_bytes=5000))
    app = create_app(service, settings)  # type: ignore[arg-type]
    body = json.dumps(chat(messages=[{"role": "user", "content": "x" * 3000}])).encode()
    headers = {**JSON_HEADERS, **({"content-length": str(len(body))} if tells_its_length else {})}
    first = asyncio.create_task(Call("POST", "/v1/chat/completions", body, dict(headers)).run(app))
    async with asyncio.timeout(5):
        while not service.open:
            await asyncio.sleep(0.001)
    refused = await Call("POST", "/v1/chat/completions", body, dict(headers)).run(app)
    assert refused.status == 503
    assert refused.headers["retry-after"] == "1"
    assert service.open == 1
    first.cancel()
    await asyncio.wait([first])
    service.script = ScriptedService().script
    assert (await Call("POST", "/v1/chat/completions", body, dict(headers)).run(app)).status == 200
    assert (await post(app, chat())).status == 200
