"""An engine whose model runs in this very process: its life, whatever computes, and for engines that compute step after
step (`steps.py`) the way of a request, too. `worker` gives such an engine a process of its own.

One request, hop by hop:

    generate (event loop) -> the engine's prompt -> inbox -> [engine thread: steps] -> the request's queue on the event
    loop (`delivery.py`)
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import msgspec

from sightline.config import ModelConfig
from sightline.engines import EngineInfo
from sightline.engines.delivery import Events, refuse_hopeless, room_for_answer, verify_logit_bias
from sightline.engines.steps import StepThread, generated
from sightline.engines.tool_calls import calls_of
from sightline.errors import EngineUnavailable, InvalidRequest
from sightline.types import EngineRequest, Event, TokenCount

if TYPE_CHECKING:
    from sightline.engines.answer import Vocabulary
    from sightline.engines.constraint import Constraints
    from sightline.engines.generation import Generation, Prompt
    from sightline.engines.tool_formats import ToolFormat


class _Loaded(Protocol):
    """What is there between `start` and `close`."""

    @property
    def info(self) -> EngineInfo: ...

    def close(self) -> None:
        """Frees it. Called in a thread, once."""


L = TypeVar("L", bound=_Loaded)
S = TypeVar("S", bound=msgspec.Struct)
B = TypeVar("B", bound="Prompts")
T = TypeVar("T", bound=StepThread[Any])


def read_options(config: ModelConfig, kind: type[S], whose: str = "Engine options") -> S:
    """Raises `InvalidRequest` for options that do not exist or have the wrong type."""
    try:
        return msgspec.convert(dict(config.options), kind, strict=False)
    except msgspec.ValidationError as error:
        raise wrong_option(str(error), whose) from None


def wrong_option(problem: str, whose: str = "Engine options") -> InvalidRequest:
    return InvalidRequest(f"{whose}: {problem}.", param="options")


class LocalEngine(ABC, Generic[L]):
    """The life of an `Engine`: made -> `start` loads in a thread -> what runs -> `close`."""

    progress: float | None = None
    """Of loading: what part of the weights is in place; None: not known."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._loaded: L | None = None
        self._closed = False

    @property
    def info(self) -> EngineInfo:
        return self._running.info

    async def start(self) -> None:
        try:
            loaded = await self._in_thread(self._load)
        except ImportError as error:
            self._closed = True
            needs = f"The {self._config.engine} engine needs a package: {error}."
            raise EngineUnavailable(f"{needs} {self._how_to_install()}") from error
        except (OSError, RuntimeError, TypeError, ValueError) as error:  # of files that say something else than meant
            self._closed = True
            raise EngineUnavailable(f"The model {self._config.name!r} cannot be loaded: {error}") from error
        if self._closed:
            await asyncio.to_thread(loaded.close)
            raise EngineUnavailable("The engine was closed while it was loading.")
        self._loaded = loaded

    async def close(self) -> None:
        self._closed = True
        if (loaded := self._loaded) is not None:
            self._loaded = None
            await asyncio.to_thread(loaded.close)

    @property
    def _running(self) -> L:
        if self._loaded is None:
            raise EngineUnavailable("The engine is not running.")
        return self._loaded

    def _count(self, progress: float) -> None:
        """From any thread; what comes late counts no less."""
        self.progress = max(self.progress or 0.0, progress)

    # --- what an engine does -----------------------------------------------------------------------------------------

    @abstractmethod
    def _load(self) -> L:
        """In a thread. Raises `ImportError` for a package that is not there, and `OSError`, `RuntimeError`, `TypeError`
        or `ValueError` (`CheckpointError` and `BudgetError` are such) for a model that cannot be loaded."""

    async def _in_thread(self, load: Callable[[], L]) -> L:
        return await asyncio.to_thread(load)

    def _how_to_install(self) -> str:
        """A sentence, for who has not got the engine's packages."""
        return f"Install it: pip install 'sightline[{self._config.engine}]'"


class Prompts(Protocol):
    """Builds prompts for one model. Thread-safe."""

    @property
    def tool_format(self) -> ToolFormat: ...

    def build(self, request: EngineRequest) -> Prompt:
        """Raises `InvalidRequest` for what the model's template refuses."""
        ...


@dataclass(frozen=True, slots=True)
class Stepping(Generic[B, T]):
    """What an engine that computes step after step has between `start` and `close`."""

    info: EngineInfo
    prompts: B
    vocabulary: Vocabulary
    loop: T
    generation: type[Generation[Any]]
    """What the loop takes."""
    constraints: Constraints | None = None
    """None: answers are held to nothing, and the engine's features say so."""

    def close(self) -> None:
        self.loop.close()
        if self.constraints is not None:
            self.constraints.close()


class StepEngine(LocalEngine[Stepping[B, T]]):
    """An `Engine` around a step loop."""

    async def count_tokens(self, request: EngineRequest) -> TokenCount:
        prompt, _ = await self._fit(request)
        return prompt.count

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        running = self._running
        verify_logit_bias(request.sampling, running.vocabulary.size)
        prompt, max_tokens = await self._fit(request)
        constraint = None if running.constraints is None else await running.constraints.of(request)

        def make(deliver: Callable[[Events], None]) -> Generation[Any]:
            calls = calls_of(request, running.prompts.tool_format)
            return running.generation(request, prompt, max_tokens, deliver, running.vocabulary, constraint, calls)

        async with aclosing(generated(running.loop, make)) as events:
            async for event in events:
                yield event

    async def _fit(self, request: EngineRequest) -> tuple[Prompt, int]:
        """The prompt, and how many tokens may follow it. Raises `ContextLengthExceeded`, and as `Prompts.build`."""
        refuse_hopeless(self.info.context_length, request)
        prompt = await self._build(request)
        return prompt, self._room(request, prompt.count)

    async def _build(self, request: EngineRequest) -> Prompt:
        return await asyncio.to_thread(self._running.prompts.build, request)

    def _room(self, request: EngineRequest, count: TokenCount) -> int:
        return room_for_answer(self.info.context_length, count, request.sampling.max_tokens, request.param)
