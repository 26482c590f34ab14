"""The Responses API under many clients who come, leave, go on, cancel and delete as they like."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from typing import Any

import openai

from sightline.api.app import create_app
from sightline.config import ModelConfig, ResponseLimits, Settings
from sightline.service import Service
from tests.api.serving import serving

MAX_BYTES = 150_000
SETTINGS = Settings(
    models=(ModelConfig(name="fake", engine="fake", max_concurrent=8, max_queue=128, options={"step_s": 0.001}),),
    responses=ResponseLimits(max_bytes=MAX_BYTES),
)


class Crowd:
    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self.client = client
        self.ids: list[str] = []
        self.statuses: Counter[int] = Counter()

    async def act(self, seed: int) -> None:
        """One random thing that one client does."""
        chance = random.Random(seed)
        one: Any = chance.choice(self.ids) if self.ids else "resp_none"
        responses = self.client.responses
        ask: dict[str, Any] = {"model": "fake", "input": "word " * chance.randrange(1, 30)}
        if self.ids and chance.random() < 0.5:
            ask["previous_response_id"] = one
        try:
            match chance.choice(["ask", "ask", "stream", "leave", "wait", "follow", "cancel", "delete", "get", "list"]):
                case "ask":
                    self.ids.append((await responses.create(**ask, background=chance.random() < 0.5)).id)
                case "stream":
                    await self._read(await responses.create(**ask, stream=True), 10_000)
                case "leave":
                    await self._read(await responses.create(**ask, stream=True), chance.randrange(1, 20))
                case "wait":
                    asked = await responses.create(**ask, stream=True, background=True)
                    await self._read(asked, chance.randrange(1, 20))
                case "follow":
                    await self._read(await responses.retrieve(one, stream=True), 10_000)
                case "cancel":
                    await responses.cancel(one)
                case "delete":
                    await responses.delete(one)
                case "get":
                    await responses.retrieve(one)
                case "list":
                    await responses.input_items.list(one)
        except openai.APIStatusError as error:
            self.statuses[error.status_code] += 1
        else:
            self.statuses[200] += 1

    async def follow(self, response_id: str) -> None:
        try:
            await self._read(await self.client.responses.retrieve(response_id, stream=True), 10_000)
        except openai.APIStatusError as error:
            self.statuses[error.status_code] += 1

    async def _read(self, stream: Any, events: int) -> None:
        """So many of its events; then the client leaves."""
        async for event in stream:
            if event.type in ("response.created", "response.completed"):
                self.ids.append(event.response.id)
            if event.sequence_number >= events:
                break
        await stream.close()


def test_nothing_breaks_and_nothing_stays() -> None:
    service = Service(SETTINGS)

    async def main(port: int) -> None:
        base_url = f"http://127.0.0.1:{port}/v1"
        async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60) as client:
            crowd = Crowd(client)
            turns = asyncio.Semaphore(20)

            async def act(seed: int) -> None:
                async with turns:
                    await crowd.act(seed)

            await asyncio.gather(*(act(seed) for seed in range(80)))
            assert set(crowd.statuses) <= {200, 400, 404}
            assert crowd.statuses[200] > 40
            # What still runs is followed to its end. What does not is a 400 or, when it has gone, a 404.
            await asyncio.gather(*(crowd.follow(response_id) for response_id in set(crowd.ids)))
            assert set(crowd.statuses) <= {200, 400, 404}

    with serving(create_app(service, SETTINGS, wait=True)) as port:
        asyncio.run(main(port))
        model = service._models["fake"]
        deadline = time.monotonic() + 5
        while model.admission.running + model.admission.waiting:
            assert time.monotonic() < deadline, "a request still holds a slot, and nobody waits for it"
            time.sleep(0.005)
