"""Pictures that were made ready for another model than the one that they come to.

While a new model takes the place of an old one under the same name, an ingress may know the old one still, or already
the new one, and a replica be of either. Rather than refuse such a request, a replica brings its pictures to the sizes
that its own model takes: they have been resized twice then, for as long as the change takes. Pure.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b

import msgspec
import numpy as np
from PIL import Image as Pillow

from sightline.images.budget import VisionBudget
from sightline.types import EngineRequest, Image, Pixels, Text

_FILTERS = {
    "bicubic": Pillow.Resampling.BICUBIC,
    "bilinear": Pillow.Resampling.BILINEAR,
    "lanczos": Pillow.Resampling.LANCZOS,
}


def rule_of(budget: VisionBudget | None) -> str:
    """The same for the same rule of sizes, in every process."""
    return blake2b(msgspec.msgpack.encode(budget), digest_size=8).hexdigest()


def refit(request: EngineRequest, budget: VisionBudget | None) -> EngineRequest:
    """With every picture at a size that `budget` serves. None: as it is, for the engine to refuse."""
    if budget is None or not request.images:
        return request

    def part(content: Text | Image) -> Text | Image:
        return _refit(content, budget) if isinstance(content, Image) else content

    messages = tuple(replace(m, content=tuple(part(content) for content in m.content)) for m in request.messages)
    return replace(request, messages=messages)


def _refit(image: Image, budget: VisionBudget) -> Image:
    width, height, _ = budget.serve(image.served_width, image.served_height)
    if (width, height) == (image.served_width, image.served_height):
        return image
    if image.pixels.strides == (0, 0, 0):  # it stands for a size, where only that matters
        pixels: Pixels = np.broadcast_to(image.pixels[0, 0, 0], (height, width, 3))
    else:
        resized = Pillow.fromarray(np.ascontiguousarray(image.pixels)).resize(
            (width, height), _FILTERS[budget.resample]
        )
        pixels = np.asarray(resized)
    return replace(image, pixels=pixels)
