"""What the service yields and is asked for: the values between it and every surface that calls it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from sightline.engines import Engine, Work
from sightline.types import Event, TokenCount
from sightline.understanding import Understood


@dataclass(frozen=True, slots=True)
class ServedImage:
    """What became of a picture: the client is told (wire contract, section 13)."""

    width: int
    height: int
    served_width: int
    served_height: int
    tokens: int
    digest: str
    num_bytes: int = 0
    """Of the file."""
    scaled_to_fit: bool = False
    """Smaller than its budget would have had it, because the context had no room for more."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """First item of every stream: the pictures are understood and the engine has begun."""

    engine: str
    path: tuple[str, ...]
    """Replicas tried, last the one that answers: `peek@0`."""
    images: tuple[ServedImage, ...]
    token_count: TokenCount
    fetch_s: float = 0.0
    decode_s: float = 0.0
    queue_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ChoiceEvent:
    """An engine's event, and which of the request's `n` choices it belongs to."""

    index: int
    event: Event


Item = Prepared | ChoiceEvent

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """Work of an engine that ends in one value and is no answer in events: texts to embed, speech to write down."""

    request_id: str
    model: str
    work: Work
    """Engines that do not do it are not asked."""
    run: Callable[[Engine], Awaitable[T]]
    """Raises what an engine's `generate` may raise. Without effects: it may be run once more."""
    priority: int = 0
    begun: Callable[[], bool] = lambda: False
    """Whether the client has been told something of it: then nothing is tried again."""


@dataclass(frozen=True, slots=True)
class Called(Generic[T]):
    value: T
    engine: str
    path: tuple[str, ...]
    """As `Prepared.path`."""
    queue_s: float = 0.0


def to_served(understood: Understood) -> tuple[ServedImage, ...]:
    return tuple(
        ServedImage(
            width=r.image.width,
            height=r.image.height,
            served_width=r.image.served_width,
            served_height=r.image.served_height,
            tokens=tokens,
            digest=r.image.digest,
            num_bytes=r.image.num_bytes,
            scaled_to_fit=r.scaled_to_fit,
        )
        for r, tokens in zip(understood.resolved, understood.token_count.image_tokens, strict=True)
    )
