"""Scenes, and their pixels.

Shares nothing with the training generator, neither code nor look: that one draws with Pillow's primitives; here every
figure is a signed distance field sampled at pixel centres, and a pixel's coverage is `clip(1/2 - distance, 0, 1)`,
exact for a straight edge along the grid and close to it elsewhere; words are outlines filled by our own scanlines. A
model that learned one rasteriser's edges instead of shapes is found out.

A `Scene` is a complete, serialisable description: the same scene always gives the same pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from training.peek.evaluation import elsewhere
from training.peek.evaluation.lettering import cover
from training.peek.evaluation.shapes import Array, signed_distance

DIRECTIONS = ("up", "right", "down", "left")
POSITIONS = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
"""The nine cells of a 3x3 grid over the picture, in reading order."""

Rgb = tuple[int, int, int]
"""0..255 sRGB."""
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Figure:
    shape: str
    """Of `SHAPES`."""
    colour: str
    """The word a person would use."""
    rgb: Rgb
    """The shade itself."""
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
    rgb_below: Rgb | None = None
    """Shade at the figure's lower end, for a gradient."""
    stroke: float = 0.0
    """Width of its line in pixels where it is drawn as an outline; 0: filled."""


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    """Capitals, digits and '.-!'."""
    font: str
    """Of `lettering.FONTS`."""
    rgb: Rgb
    x: float
    """The middle of the text, in pixels."""
    y: float
    cap_height: float
    """Of its capitals, in pixels."""
    tilt: float = 0.0
    """Clockwise, in degrees."""
    spacing: float = 0.0
    """Between letters, in cap heights."""


@dataclass(frozen=True, slots=True)
class Block:
    """An upright rectangle: a bar, a line of a grid."""

    left: float
    top: float
    right: float
    bottom: float
    rgb: Rgb


@dataclass(frozen=True, slots=True)
class Finish:
    """What happens to a picture between the artist and the file."""

    encoding: str = "png"
    """`png`, or `jpeg:<quality>`."""
    orientation: int = 1
    """The Exif flag, 1..8: the file holds the picture turned, so that the flag turns it back."""
    blur: float = 0.0
    """Standard deviation in pixels."""
    noise: float = 0.0
    """Standard deviation in levels of 255."""


@dataclass(frozen=True, slots=True)
class Scene:
    width: int
    height: int
    background: str
    background_rgb: Rgb
    figures: tuple[Figure, ...] = ()
    texts: tuple[Text, ...] = ()
    blocks: tuple[Block, ...] = ()
    background_below: Rgb | None = None
    """The background's shade at the bottom, for a gradient."""
    elsewhere: str | None = None
    """Of `elsewhere.KINDS`: a picture that is none of `peek`'s world lies under everything."""
    seed: int = 0
    """Of noise and of what `elsewhere` draws."""
    finish: Finish = Finish()

    def to_json(self) -> dict[str, Any]:
        made: dict[str, Any] = msgspec.to_builtins(self)
        return made

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Scene:
        return msgspec.convert(data, cls)


def draw(scene: Scene) -> Pixels:
    """The scene's pixels before its finish, RGB, [height, width, 3]."""
    canvas = np.empty((scene.height, scene.width, 3), np.uint8)
    if scene.elsewhere is not None:
        canvas[:] = elsewhere.picture(scene.elsewhere, scene.width, scene.height, scene.seed)
    else:
        share = (np.arange(scene.height) + 0.5) / scene.height
        canvas[:] = np.rint(_gradient(scene.background_rgb, scene.background_below, share))[:, None]
    for block in scene.blocks:
        _paint_block(canvas, block)
    for figure in scene.figures:
        _paint_figure(canvas, figure)
    for text in scene.texts:
        _paint_text(canvas, text)
    return canvas


def _paint_figure(canvas: Pixels, figure: Figure) -> None:
    height, width, _ = canvas.shape
    reach = figure.radius + 2.0
    left, right = max(0, math.floor(figure.x - reach)), min(width, math.ceil(figure.x + reach))
    top, bottom = max(0, math.floor(figure.y - reach)), min(height, math.ceil(figure.y + reach))
    x = np.arange(left, right, dtype=np.float64)[None, :] + (0.5 - figure.x)
    y = np.arange(top, bottom, dtype=np.float64)[:, None] + (0.5 - figure.y)
    turn = math.radians(figure.tilt + 90.0 * (DIRECTIONS.index(figure.direction) if figure.direction else 0))
    cos, sin = math.cos(turn), math.sin(turn)
    u, v = x * cos + y * sin, y * cos - x * sin  # turned back into the figure's own frame
    distance = signed_distance(figure.shape, figure.radius, figure.proportion, u, v)
    if figure.stroke:  # the line lies inside the figure's edge
        distance = np.abs(distance + figure.stroke / 2) - figure.stroke / 2
    rgb = _gradient(figure.rgb, figure.rgb_below, (y[:, 0] / figure.radius + 1) / 2)[:, None]
    _blend(canvas, left, top, np.clip(0.5 - distance, 0.0, 1.0), rgb)


def _paint_text(canvas: Pixels, text: Text) -> None:
    found = cover(text.text, text.font, text.cap_height, (text.x, text.y), spacing=text.spacing, tilt=text.tilt)
    _blend(canvas, found.left, found.top, found.values, np.asarray(text.rgb, np.float64))


def _paint_block(canvas: Pixels, block: Block) -> None:
    left, top = math.floor(block.left), math.floor(block.top)
    x = np.arange(left, math.ceil(block.right), dtype=np.float64)
    y = np.arange(top, math.ceil(block.bottom), dtype=np.float64)
    across = np.minimum(x + 1, block.right) - np.maximum(x, block.left)
    down = np.minimum(y + 1, block.bottom) - np.maximum(y, block.top)
    _blend(canvas, left, top, down[:, None] * across[None, :], np.asarray(block.rgb, np.float64))


def _blend(canvas: Pixels, left: int, top: int, coverage: Array, rgb: Array) -> None:
    """Lays `rgb` over the canvas where `coverage` [h, w] says; what reaches over the canvas' edge is cut off."""
    height, width, _ = canvas.shape
    rows = slice(max(0, -top), min(coverage.shape[0], height - top))
    columns = slice(max(0, -left), min(coverage.shape[1], width - left))
    share = coverage[rows, columns][..., None]
    patch = canvas[top + rows.start : top + rows.stop, left + columns.start : left + columns.stop]
    patch[:] = np.rint(patch + share * (rgb - patch))


def _gradient(above: Rgb, below: Rgb | None, share: Array) -> Array:
    """Shades from `above` (share 0) to `below` (share 1), [n, 3]."""
    start = np.asarray(above, np.float64)
    made: Array = start + np.clip(share, 0, 1)[:, None] * (np.asarray(below or above, np.float64) - start)
    return made
