"""What is tested, and how it is asked."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np

from sightline.config import ModelConfig
from sightline.engines import Engine, EngineInfo
from sightline.errors import EngineUnavailable
from sightline.types import EngineRequest, Event, Finish, Image, Message, Pixels, SamplingParams, Text, TextDelta


@dataclass(frozen=True)
class Subject:
    """An engine with a model, as a row of `test_conformance.py` names it."""

    name: str
    config: ModelConfig
    open: Callable[[ModelConfig], Engine]
    sees: Callable[[Engine], Awaitable[None]]
    """Asserts that pictures arrive, and in order: two requests that differ in nothing else get different answers."""
    specials: tuple[str, ...]
    """Texts of the model's special tokens."""
    needs: Path | None = None
    """A file without which this engine cannot be tried here."""
    kills: int = 8
    """Each of the four moments at which an engine is killed comes twice."""
    back_within_s: float = 3.0
    """After a kill, until it answers again: a cold start, and what a machine at work adds to it."""

    @asynccontextmanager
    async def running(self, **config: object) -> AsyncIterator[Engine]:
        """A started engine of one's own, with other settings."""
        engine = self.open(msgspec.structs.replace(self.config, **config))
        await engine.start()
        try:
            yield engine
        finally:
            await engine.close()


Clause: TypeAlias = Callable[[Subject, Engine], Awaitable[None]]
CLAUSES: list[Clause] = []
ISOLATED_CLAUSES: list[Clause] = []


def clause(function: Clause) -> Clause:
    CLAUSES.append(function)
    return function


def isolated_clause(function: Clause) -> Clause:
    ISOLATED_CLAUSES.append(function)
    return function


# --- asking ----------------------------------------------------------------------------------------------------------


def picture(info: EngineInfo, width: int, height: int, colour: tuple[int, int, int] = (200, 30, 30)) -> Image:
    """A plain picture, served as the intake would serve it."""
    assert info.vision is not None
    served_width, served_height = info.vision.serve(width, height)[:2]
    pixels: Pixels = np.full((served_height, served_width, 3), colour, np.uint8)
    return Image(pixels, f"sha256:{width}x{height}{colour}", width, height, "image/png", 1000)


def ask(*content: str | Image, **sampling: object) -> EngineRequest:
    """One user message, answered greedily unless said otherwise."""
    parts = tuple(Text(part) if isinstance(part, str) else part for part in content)
    params = replace(SamplingParams(temperature=0.0), **sampling)  # type: ignore[arg-type]
    return EngineRequest("request", "model", (Message[Image]("user", parts),), params)


def long(request: EngineRequest, max_tokens: int | None) -> EngineRequest:
    """As many tokens as that (None: as the context holds), whatever the model would rather do."""
    return replace(request, sampling=replace(request.sampling, max_tokens=max_tokens, ignore_eos=True))


async def collect(engine: Engine, request: EngineRequest) -> list[Event]:
    return [event async for event in engine.generate(request)]


async def answer(engine: Engine, request: EngineRequest) -> tuple[str, Finish]:
    """What a client would read. Asserts the shape that every stream has: deltas, then exactly one `Finish`."""
    *deltas, finish = await collect(engine, request)
    assert isinstance(finish, Finish)
    assert all(isinstance(delta, TextDelta) for delta in deltas)
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)), finish


async def first_event(engine: Engine, request: EngineRequest) -> None:
    """Runs a request until it has begun, then leaves."""
    async with aclosing(engine.generate(request)) as events:
        await anext(events)


def patience() -> float:
    """How many times longer to wait than promised: a promise in seconds is one of a machine that has the time."""
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    return 1.0 if load < 1.5 else 2 * load


async def ends(engine: Engine, request: EngineRequest) -> BaseException | Finish:
    """How a request ends, whatever way."""
    try:
        return (await answer(engine, request))[1]
    except Exception as error:
        return error


async def served(engine: Engine, request: EngineRequest) -> str:
    """As the service runs a request: once more if the engine died before it had said anything."""
    for _ in range(2):
        try:
            return (await answer(engine, request))[0]
        except EngineUnavailable:
            await asyncio.sleep(0)
    raise AssertionError("twice unavailable")
