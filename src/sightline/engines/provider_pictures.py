"""Pictures as providers take them: data URIs within the limits that they publish.

Sources, as read in November 2026; none was checked against the APIs:

- Anthropic, "Vision" (5 MB of base64 a picture, 32 MB and 100 pictures a request).
- AWS, `ImageBlock` of Bedrock's Converse API (3.75 MB a picture, 20 pictures).
- Google, "Image understanding" of the Gemini API (20 MB a request that has its data inline) and of Vertex AI (7 MB a
  picture).
- OpenAI, "Images and vision" (50 MB and 500 pictures a request).

A provider that is not here is taken to have the narrowest.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pybase64
from PIL import Image as PILImage

from sightline.engines.remote.pictures import to_data_uri
from sightline.errors import BodyTooLarge, ImageFileTooLarge
from sightline.types import Image, Pixels

_MB = 1_000_000
_QUALITIES = (95, 90, 80)


class Limits(NamedTuple):
    """In characters of base64."""

    picture: int
    request: int
    max_images: int | None = None


_NARROWEST = Limits(5 * _MB, 20 * _MB)
LIMITS: Mapping[str, Limits] = {
    "anthropic": Limits(5 * _MB, 30 * _MB, 100),
    "bedrock": Limits(5 * _MB, 20 * _MB, 20),
    "gemini": Limits(19 * _MB, 19 * _MB),
    "vertex_ai": Limits(9 * _MB, 19 * _MB),
    "openai": Limits(20 * _MB, 48 * _MB, 500),
    "azure": Limits(20 * _MB, 48 * _MB, 50),
}
"""By LiteLLM's name of a provider. Of a request, some is left for text."""


def limits_of(provider: str) -> Limits:
    return LIMITS.get(provider, _NARROWEST)


async def to_data_uris(images: Sequence[Image], limits: Limits) -> list[str]:
    """In order. Raises `ImageFileTooLarge` or `BodyTooLarge` for what the provider would refuse."""
    uris = list(await asyncio.gather(*(asyncio.to_thread(fitting, image.pixels, limits.picture) for image in images)))
    if sum(map(len, uris)) > limits.request:
        raise BodyTooLarge(
            f"This model's provider takes {limits.request // _MB} MB of pictures in a request. Send fewer or smaller."
        )
    return uris


def fitting(pixels: Pixels, most: int) -> str:
    """PNG, which loses nothing; a JPEG at full chroma where that would be more than `most` characters."""
    uri = to_data_uri(pixels).decode()
    for quality in _QUALITIES:
        if len(uri) <= most:
            return uri
        uri = _to_jpeg_uri(pixels, quality)
    if len(uri) > most:
        raise ImageFileTooLarge(f"A picture is more than the {most / _MB:g} MB that this model's provider takes.")
    return uri


def _to_jpeg_uri(pixels: Pixels, quality: int) -> str:
    file = io.BytesIO()
    PILImage.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=quality, subsampling=0)
    return f"data:image/jpeg;base64,{pybase64.b64encode(file.getvalue()).decode()}"
