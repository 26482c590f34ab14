"""A served model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from sightline.errors import InvalidRequest

PEEK = "peek"
"""The name of the embedded model, and the source that means it."""


class PictureSize(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How large an operator lets pictures reach a model. `images/plan.py` says what becomes of it."""

    detail: Literal["auto", "low", "high", "original"] = "auto"
    """Of pictures whose request asks for none."""
    max_pixels: int | None = None
    """At most, whatever a request asks for; None: what the model can use."""
    min_pixels: int | None = None

    def __post_init__(self) -> None:
        low, high = self.min_pixels, self.max_pixels
        if any(pixels is not None and pixels < 1 for pixels in (low, high)):
            raise InvalidRequest("max_pixels and min_pixels are numbers of pixels, 1 or more.", param="max_pixels")
        if low is not None and high is not None and low > high:
            raise InvalidRequest(f"min_pixels ({low}) must not be above max_pixels ({high}).", param="min_pixels")


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One served model: a name, the engine that runs it, where it lives."""

    name: str
    engine: str = "openvino"
    source: str = PEEK
    """`peek`, or where the model is: a directory; for some engines a GGUF file, a hub's id, or a name they know."""
    options: Mapping[str, Any] = {}
    """The engine's own options, checked by the engine."""
    python: str | None = None
    """The Python of the environment that the engine is installed in; None: the server's own. `sightline engine install`
    makes such environments."""
    max_concurrent: Annotated[int, msgspec.Meta(ge=1)] = 16
    """Sequences that run at once; more wait."""
    max_queue: Annotated[int, msgspec.Meta(ge=0)] = 256
    """Requests that may wait; more are refused with 503 and a Retry-After."""
    max_wait_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    """Who would wait longer than this for a slot is refused at once, as far as queue and measured rate can tell. The
    shorter, the sooner those who are taken have their first token, however many come; batches wait regardless."""
    start_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 120.0
    limit_mm_per_prompt: Mapping[str, int] = {}
    """`{"image": 4}`: at most four pictures in a request, on whichever engine."""
    picture_size: PictureSize = PictureSize()
    aliases: tuple[str, ...] = ()
    """Other names that requests may use for it."""
    fallbacks: tuple[str, ...] = ()
    """Names of the models that are tried, in this order, when this one fails or is full."""
    load: Literal["start", "demand"] = "start"
    """`start`: loaded before the server is ready; `demand`: with the first request for it."""
    idle_unload_s: float | None = None
    """Seconds without a request after which it is unloaded, until the next; None: never."""

    def __post_init__(self) -> None:
        if self.idle_unload_s is not None and not 0 < self.idle_unload_s < float("inf"):
            raise InvalidRequest(
                f"idle_unload_s is a number of seconds above 0, not {self.idle_unload_s}; leave it out for never.",
                param="idle_unload_s",
            )
        for kind, most in self.limit_mm_per_prompt.items():
            if kind != "image" or most < 0:
                raise InvalidRequest(
                    f"limit_mm_per_prompt takes the key 'image' and a number from 0 on, not {kind!r}: {most}.",
                    param="limit_mm_per_prompt",
                )

    @property
    def max_images(self) -> int | None:
        """Pictures in one request; None: as many as the engine takes."""
        return self.limit_mm_per_prompt.get("image")

    @property
    def known_as(self) -> str:
        """What a server that runs the model calls it, where no option says so: the source, or this model's name."""
        return self.name if self.source == PEEK else self.source

    @property
    def path(self) -> Path:
        """Of a source that is a file or a directory."""
        return Path(__file__).parent.parent / "peek" / "model" if self.source == PEEK else Path(self.source)
