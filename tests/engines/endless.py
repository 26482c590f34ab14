"""For engines whose servers have no `ignore_eos`, on stand-ins whose models never end by themselves."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from sightline.config import ModelConfig
from sightline.engines import EngineInfo, open_engine
from sightline.types import EngineRequest, Event, TokenCount


class Endless:
    """The engine, of a model that never ends by itself: `ignore_eos`, which Ollama does not have, says nothing."""

    def __init__(self, config: ModelConfig) -> None:
        self._engine = open_engine(config)

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    async def start(self) -> None:
        await self._engine.start()

    async def count_tokens(self, request: EngineRequest) -> TokenCount:
        return await self._engine.count_tokens(request)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        plain = replace(request, sampling=replace(request.sampling, ignore_eos=False))
        async with aclosing(self._engine.generate(plain)) as events:
            async for event in events:
                yield event

    async def close(self) -> None:
        await self._engine.close()
