"""Pictures for the evaluation, rasterised from signed distances.

Shares nothing with the training generator, neither code nor look: that one draws with Pillow's primitives; here every
figure is a signed distance field sampled at pixel centres, and a pixel's coverage is `clip(1/2 - distance, 0, 1)`,
exact for a straight edge along the grid and close to it elsewhere. A model that learned one rasteriser's edges instead
of shapes is found out.

A `Scene` is a complete, serialisable description: the same scene always gives the same pixels.
"""

from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "arrow")
DIRECTIONS = ("up", "right", "down", "left")
POSITIONS = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
"""The nine cells of a 3x3 grid over the picture, in reading order."""

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Figure:
    shape: str
    """Of `SHAPES`."""
    colour: str
    """The word a person would use."""
    rgb: tuple[int, int, int]
    """The shade itself, 0..255 sRGB."""
    x: float
    """Centre in pixels from the left edge of the picture; pixel 0 covers 0..1."""
    y: float
    radius: float
    """Of the circle around the figure, in pixels."""
    tilt: float = 0.0
    """Clockwise, in degrees, from the figure's upright stance (an arrow's: from its direction)."""
    proportion: float = 0.5
    """0..1: the shape's own thickness, from slender to stout (a ring's band, a cross's arms, a star's core)."""
    direction: str | None = None
    """Of `DIRECTIONS`, for arrows."""


@dataclass(frozen=True, slots=True)
class Scene:
    width: int
    height: int
    background: str
    background_rgb: tuple[int, int, int]
    figures: tuple[Figure, ...]
    encoding: str = "png"
    """`png`, or `jpeg:<quality>`."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Scene:
        figures = tuple(Figure(**{**figure, "rgb": tuple(figure["rgb"])}) for figure in data["figures"])
        return cls(**{**data, "background_rgb": tuple(data["background_rgb"]), "figures": figures})


def draw(scene: Scene) -> npt.NDArray[np.uint8]:
    """The scene's pixels, RGB, [height, width, 3]."""
    canvas = np.empty((scene.height, scene.width, 3), np.float64)
    canvas[:] = scene.background_rgb
    for figure in scene.figures:
        reach = figure.radius + 2.0
        left, right = max(0, math.floor(figure.x - reach)), min(scene.width, math.ceil(figure.x + reach))
        top, bottom = max(0, math.floor(figure.y - reach)), min(scene.height, math.ceil(figure.y + reach))
        x = np.arange(left, right, dtype=np.float64)[None, :] + (0.5 - figure.x)
        y = np.arange(top, bottom, dtype=np.float64)[:, None] + (0.5 - figure.y)
        coverage = np.clip(0.5 - _signed_distance(figure, x, y), 0.0, 1.0)[..., None]
        patch = canvas[top:bottom, left:right]
        patch += coverage * (np.asarray(figure.rgb, np.float64) - patch)
    return np.rint(canvas).astype(np.uint8)


def encode(scene: Scene) -> bytes:
    """The scene as the bytes of a picture file."""
    kind, _, quality = scene.encoding.partition(":")
    file = io.BytesIO()
    picture = Image.fromarray(draw(scene))
    if kind == "jpeg":
        picture.save(file, "JPEG", quality=int(quality))
    else:
        picture.save(file, "PNG", compress_level=3)
    return file.getvalue()


def media_type(scene: Scene) -> str:
    return "image/jpeg" if scene.encoding.startswith("jpeg") else "image/png"


def _signed_distance(figure: Figure, x: _Array, y: _Array) -> _Array:
    """Distance to the figure's outline in pixels, negative inside; `x` [1, w] and `y` [h, 1] count from its centre."""
    turn = math.radians(figure.tilt + 90.0 * (DIRECTIONS.index(figure.direction) if figure.direction else 0))
    cos, sin = math.cos(turn), math.sin(turn)
    u, v = x * cos + y * sin, y * cos - x * sin  # turned back into the figure's own frame
    if figure.shape == "circle":
        return np.hypot(u, v) - 0.92 * figure.radius
    if figure.shape == "ring":
        inner = _between(0.66, 0.46, figure.proportion)
        middle, half_band = (1.0 + inner) / 2 * figure.radius, (1.0 - inner) / 2 * figure.radius
        return np.abs(np.hypot(u, v) - middle) - half_band
    return _polygon_distance(np.asarray(_outline(figure.shape, figure.proportion)) * figure.radius, u, v)


def _polygon_distance(vertices: _Array, u: _Array, v: _Array) -> _Array:
    """Signed distance to a simple polygon, [h, w]; `vertices` [n, 2].

    Source: Inigo Quilez, "2D distance functions", `sdPolygon`: the nearest edge gives the size, the parity of crossings
    the sign.
    """
    nearest = np.full(u.shape, np.inf)
    inside = np.zeros(u.shape, bool)
    for (ax, ay), (bx, by) in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
        ex, ey = bx - ax, by - ay
        wx, wy = u - ax, v - ay
        along = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0.0, 1.0)
        nearest = np.minimum(nearest, (wx - ex * along) ** 2 + (wy - ey * along) ** 2)
        if ay != by:
            crosses = (ay > v) != (by > v)
            inside ^= crosses & (u < ax + (v - ay) / (by - ay) * ex)
    distance: _Array = np.sqrt(nearest)
    return np.where(inside, -distance, distance)


def _outline(shape: str, proportion: float) -> list[tuple[float, float]]:
    """Vertices within the unit circle, y downwards, upright (an arrow points up)."""
    if shape == "square":
        side = 0.8
        return [(-side, -side), (side, -side), (side, side), (-side, side)]
    if shape == "triangle":
        return [_polar(1.0, angle) for angle in (0, 120, 240)]
    if shape == "star":
        core = _between(0.38, 0.46, proportion)
        return [_polar(1.0 if point % 2 == 0 else core, 36 * point) for point in range(10)]
    if shape == "diamond":
        width = _between(0.56, 0.74, proportion)
        return [(0, -1), (width, 0), (0, 1), (-width, 0)]
    if shape == "cross":
        arm, reach = _between(0.22, 0.34, proportion), 0.94
        corner = [(arm, -reach), (arm, -arm), (reach, -arm)]
        quarters = [corner, *([(_turned(p, n)) for p in corner] for n in (1, 2, 3))]
        return [point for quarter in quarters for point in quarter]
    if shape == "arrow":
        shaft, head, neck = _between(0.16, 0.28, proportion), 0.72, -0.12
        return [(0, -1), (head, neck), (shaft, neck), (shaft, 0.95), (-shaft, 0.95), (-shaft, neck), (-head, neck)]
    raise ValueError(f"unknown shape {shape!r}")


def _polar(radius: float, clockwise_deg: float) -> tuple[float, float]:
    angle = math.radians(clockwise_deg)
    return radius * math.sin(angle), -radius * math.cos(angle)


def _turned(point: tuple[float, float], quarters: int) -> tuple[float, float]:
    """Turned clockwise (y is downwards) by quarter turns, exactly."""
    x, y = point
    for _ in range(quarters):
        x, y = -y, x
    return x, y


def _between(low: float, high: float, proportion: float) -> float:
    return low + (high - low) * proportion
