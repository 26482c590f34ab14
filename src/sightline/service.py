"""The service: every surface calls this, and nothing below it knows HTTP.

(Interface first; the body follows.)
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Literal

from sightline.config import Settings
from sightline.engines import Engine, EngineInfo
from sightline.types import ChatRequest, Event, TokenCount

ModelState = Literal["unloaded", "loading", "ready", "failed"]


@dataclass(frozen=True, slots=True)
class ServedImage:
    """What became of a picture: the client is told (wire contract section 13)."""

    width: int
    height: int
    served_width: int
    served_height: int
    tokens: int
    digest: str
    cached: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """First item of every stream: the pictures are understood, the engine has begun. Nothing can be a 4xx after it."""

    engine: str
    path: tuple[str, ...]
    """Replicas tried, last the one that answers: `peek@0`."""
    images: tuple[ServedImage, ...]
    token_count: TokenCount
    fetch_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ChoiceEvent:
    """An engine's event, and which of the request's `n` choices it belongs to."""

    index: int
    event: Event


@dataclass(frozen=True, slots=True)
class ModelStatus:
    name: str
    state: ModelState
    engine: str
    created: int
    """Unix seconds when it was configured."""
    info: EngineInfo | None
    """None until the engine has been ready once."""


class Service:
    def __init__(self, settings: Settings, engines: Mapping[str, Engine] | None = None) -> None:
        """`engines` replaces, by model name, the engines that `settings.models` would open (tests, embedding)."""

    async def start(self, *, wait: bool = True) -> None:
        """Starts the decoders and every model; with `wait`, returns when each is ready or has failed."""

    async def close(self) -> None: ...

    def models(self) -> tuple[ModelStatus, ...]: ...

    def ready(self) -> bool:
        """Whether every configured model can take a request now."""

    async def count_tokens(self, request: ChatRequest) -> TokenCount: ...

    def generate(self, request: ChatRequest, *, timeout_s: float | None = None) -> AsyncGenerator[Prepared | ChoiceEvent, None]:
        """Yields `Prepared` together with the first event of an engine (so an error before it can still be a true status), then
        `ChoiceEvent`s, interleaved by index, one `Finish` for each choice. Raises only `SightlineError`. Closing it
        cancels everything the request still holds: queue place, decoders, engine sequences."""
