"""Pictures that the tests draw for themselves: the same on every machine, with detail at every scale."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sightline.config import ImageLimits
from sightline.images.budget import CellBudget
from sightline.images.codec import Picture, decode

LIMITS = ImageLimits()
AS_IT_IS = CellBudget(cell=1, min_pixels=1, max_pixels=2**40)
"""Serves every picture at its own size."""


def waves(width: int, height: int, *, seed: int = 0) -> npt.NDArray[np.uint8]:
    """RGB waves that get finer towards the right and the bottom, with a hard-edged disc: shape [height, width, 3]."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    x, y = x / max(width, 2), y / max(height, 2)
    channels = [
        127.5 + 127.5 * np.sin((9 + 5 * c + seed) * (x * x * 4 + y) + (c + seed) * y * y * 31 + c) for c in range(3)
    ]
    pixels = np.stack(channels, axis=-1)
    pixels[(x - 0.4) ** 2 + (y - 0.6) ** 2 < 0.04] = (250, 30, 60 + seed % 100)
    return pixels.round().astype(np.uint8)


def noise(width: int, height: int, *, channels: int = 3, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Every value equally likely: shape [height, width, channels], or [height, width] for one."""
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(picture: Image.Image | npt.NDArray[np.uint8], format: str, **options: Any) -> bytes:
    """A file of this picture; lossless unless the options or the format say otherwise."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    if format == "WEBP":
        options.setdefault("lossless", True)
        options.setdefault("exact", True)
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def decoded(
    file: bytes, budget: CellBudget = AS_IT_IS, limits: ImageLimits = LIMITS
) -> tuple[Picture, npt.NDArray[np.uint8]]:
    """What the codec makes of a file, pixels as an array of shape [served_height, served_width, 3]."""
    picture, rgb = decode(io.BytesIO(file), budget, limits)
    return picture, np.frombuffer(rgb, np.uint8).reshape(picture.served_height, picture.served_width, 3)
