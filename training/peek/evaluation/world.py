"""Scenes whose truth is beyond dispute: shades no one names otherwise, figures apart, centres well inside a cell."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from training.peek.evaluation.drawing import DIRECTIONS, POSITIONS, Figure, Finish, Rgb, Scene
from training.peek.evaluation.shapes import ROUND

_SHADES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    # hue in degrees, saturation, value: boxes well inside what the word means, with empty space between any two
    "red": ((-6, 5), (0.85, 1.0), (0.78, 0.95)),
    "green": ((112, 142), (0.65, 1.0), (0.48, 0.75)),
    "blue": ((217, 236), (0.75, 1.0), (0.7, 0.95)),
    "yellow": ((52, 58), (0.85, 1.0), (0.94, 1.0)),
    "orange": ((25, 33), (0.9, 1.0), (0.95, 1.0)),
    "purple": ((272, 288), (0.65, 0.85), (0.5, 0.7)),
    "pink": ((328, 345), (0.32, 0.5), (0.97, 1.0)),
    "brown": ((20, 29), (0.62, 0.8), (0.38, 0.52)),
    "black": ((0, 360), (0.0, 0.3), (0.0, 0.07)),
    "white": ((0, 360), (0.0, 0.02), (0.97, 1.0)),
    "grey": ((0, 360), (0.0, 0.04), (0.45, 0.6)),
    "cyan": ((179, 187), (0.8, 1.0), (0.88, 1.0)),
}
COLOURS = tuple(_SHADES)

SHORTEST, LONGEST, MAX_RATIO = 56, 4000, 4.0
"""Sides of a picture in pixels, and the longer to the shorter one."""

_MIN_CONTRAST = 40.0
"""CIE76 distance between a figure and the background: ten times what a careful eye tells apart."""

_CELL, _MIN_PIXELS, _MAX_PIXELS = 28, 12_544, 38_400
"""`peek`'s pictures: cells of 28x28 px, 16 to 48 of them."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A figure that a question needs: what is left open is drawn by lot."""

    shape: str
    colour: str
    position: str | None = None
    direction: str | None = None
    scale: float | None = None
    """Its radius as a share of the picture's shorter side."""


class Ground(NamedTuple):
    """A picture before anything is on it."""

    width: int
    height: int
    colour: str
    above: Rgb
    below: Rgb | None


def shade(colour: str, rng: Random) -> Rgb:
    """A shade of the colour, drawn evenly from its box."""
    hue, saturation, value = (rng.uniform(*span) for span in _SHADES[colour])
    red, green, blue = colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def served_size(width: int, height: int) -> tuple[int, int]:
    """The size in pixels at which a model of the Qwen2-VL family with `peek`'s limits gets a picture.

    Our own copy of the rule, so that what is legible does not depend on the code under test. Source: `smart_resize` in
    transformers' `models/qwen2_vl/image_processing_qwen2_vl.py`.
    """
    across, down = round(width / _CELL) * _CELL, round(height / _CELL) * _CELL
    if across * down > _MAX_PIXELS:
        shrink = math.sqrt(width * height / _MAX_PIXELS)
        return max(_CELL, int(width / shrink // _CELL) * _CELL), max(_CELL, int(height / shrink // _CELL) * _CELL)
    if across * down < _MIN_PIXELS:
        grow = math.sqrt(_MIN_PIXELS / (width * height))
        return math.ceil(width * grow / _CELL) * _CELL, math.ceil(height * grow / _CELL) * _CELL
    return across, down


def served_scale(width: int, height: int) -> float:
    """Pixels that a model gets for one pixel of the file, along the side that loses more."""
    across, down = served_size(width, height)
    return min(across / width, down / height)


def some_size(rng: Random, longest: int = LONGEST, max_ratio: float = MAX_RATIO) -> tuple[int, int]:
    """Width and height: every size equally likely on a logarithmic scale, squarish ratios more often."""
    ratio = max_ratio ** (rng.random() ** 1.5)
    long = math.exp(rng.uniform(math.log(SHORTEST * ratio), math.log(longest)))
    long, short = round(long), max(SHORTEST, round(long / ratio))
    return (long, short) if rng.random() < 0.5 else (short, long)


def some_finish(rng: Random, width: int, height: int) -> Finish:
    """A file's format and faults: PNG or JPEG, any Exif flag, for a quarter each slight blur and slight noise."""
    encoding = "png" if rng.random() < 0.5 else f"jpeg:{rng.randint(50, 95)}"
    orientation = rng.randint(1, 8) if rng.random() < 0.6 else 1
    # as wide as 0.3 to 0.7 px of what the model gets, where the file has more pixels than that
    blur = rng.uniform(0.3, 0.7) / min(1.0, served_scale(width, height)) if rng.random() < 0.25 else 0.0
    noise = rng.uniform(2, 8) if rng.random() < 0.25 else 0.0
    if noise and max(width, height) > 1600:
        encoding = f"jpeg:{rng.randint(50, 95)}"  # noise does not compress: as PNG it would pass a server's limit
    return Finish(encoding, orientation, round(blur, 2), round(noise, 1))


def some_ground(rng: Random, colour: str, size: tuple[int, int]) -> Ground:
    """A background of the colour; one in four is a gradient between two of its shades."""
    return Ground(*size, colour, shade(colour, rng), shade(colour, rng) if rng.random() < 0.25 else None)


def compose(
    wishes: Sequence[Wish],
    rng: Random,
    *,
    background: str | None = None,
    avoid: str | None = None,
    longest: int = LONGEST,
    size: tuple[int, int] | None = None,
) -> Scene:
    """A scene with exactly these figures, none touching another, on a background unlike any of them.

    `avoid` is a colour that the background must not have. Without a `size` (width, height) the sides are
    56..`longest` px and the ratio is up to 4:1.
    """
    while True:  # a draw that does not come out (too crowded, too little contrast) is drawn again, whole
        width, height = size or some_size(rng, longest)
        figures = _place(wishes, width, height, rng)
        free = [c for c in COLOURS if c != avoid and all(c != w.colour for w in wishes)]
        ground = some_ground(rng, background or rng.choice(free), (width, height))
        if figures is None or not all(stands_out(figure, ground) for figure in figures):
            continue
        return scene_on(ground, rng, figures=figures)


def scene_on(ground: Ground, rng: Random, **contents: object) -> Scene:
    """The ground with things on it and a finish of its own; `contents` are fields of `Scene`."""
    return Scene(
        ground.width,
        ground.height,
        ground.colour,
        ground.above,
        background_below=ground.below,
        seed=rng.getrandbits(32),
        finish=some_finish(rng, ground.width, ground.height),
        **contents,  # type: ignore[arg-type]
    )


def stands_out(figure: Figure, ground: Ground) -> bool:
    """Whether every shade of the figure is far from every shade of the ground."""
    inks = [rgb for rgb in (figure.rgb, figure.rgb_below) if rgb]
    papers = [rgb for rgb in (ground.above, ground.below) if rgb]
    return all(contrast(ink, paper) >= _MIN_CONTRAST for ink in inks for paper in papers)


def cell_of(x: float, y: float, width: float, height: float) -> str:
    """The position word of a point: the cell of the 3x3 grid that holds it."""
    column, row = min(2, int(3 * x / width)), min(2, int(3 * y / height))
    return POSITIONS[3 * row + column]


def _place(wishes: Sequence[Wish], width: int, height: int, rng: Random) -> tuple[Figure, ...] | None:
    """Figures in free places, or None when this try found no room."""
    short = min(width, height)
    placed: list[Figure] = []
    for wish in sorted(wishes, key=lambda w: -(w.scale or 0)):
        # one that stands in a cell of the border row must fit between the cell's middle and the picture's edge
        largest = (0.16 if wish.position or len(wishes) > 4 else 0.2 if len(wishes) > 2 else 0.3) * short
        radius = wish.scale * short if wish.scale else rng.uniform(max(8.5, 0.11 * short), max(9.0, largest))
        place = _free_place(wish, radius, width, height, placed, rng)
        if place is None:
            return None
        placed.append(_figure(wish, radius, place, rng, served_scale(width, height)))
    rng.shuffle(placed)
    return tuple(placed)


def _free_place(
    wish: Wish, radius: float, width: int, height: int, placed: Sequence[Figure], rng: Random
) -> tuple[float, float] | None:
    for _ in range(40):
        if wish.position:
            row, column = divmod(POSITIONS.index(wish.position), 3)
            x = width * (column + rng.uniform(0.25, 0.75)) / 3
            y = height * (row + rng.uniform(0.25, 0.75)) / 3
        else:
            x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
        inside = radius <= x <= width - radius and radius <= y <= height - radius
        if inside and all(math.hypot(x - f.x, y - f.y) >= 1.08 * (radius + f.radius) + 2 for f in placed):
            return x, y
    return None


def _figure(wish: Wish, radius: float, place: tuple[float, float], rng: Random, scale: float) -> Figure:
    """The wished figure; one in five is an outline, one in five a gradient. `scale` is what serving makes of a pixel.

    A circle is never an outline: people call that a ring. Nor is what would be a line of under 2.5 px to the model.
    """
    stroke = radius * rng.uniform(0.14, 0.2)
    outlined = wish.shape not in ROUND and stroke * scale >= 2.5 and rng.random() < 0.2
    shaded = rng.random() < 0.2
    return Figure(
        shape=wish.shape,
        colour=wish.colour,
        rgb=shade(wish.colour, rng),
        x=round(place[0], 2),
        y=round(place[1], 2),
        radius=round(radius, 2),
        tilt=round(rng.uniform(-8, 8), 1),
        proportion=round(rng.random(), 2),
        direction=wish.direction or (rng.choice(DIRECTIONS) if wish.shape == "arrow" else None),
        rgb_below=shade(wish.colour, rng) if shaded else None,
        stroke=round(stroke, 2) if outlined else 0.0,
    )


def contrast(a: Rgb, b: Rgb) -> float:
    """CIE76 colour difference: Euclidean distance in CIELAB under D65."""
    return math.dist(to_lab(a), to_lab(b))


def to_lab(rgb: Rgb) -> tuple[float, float, float]:
    """sRGB to CIELAB. Source: IEC 61966-2-1 (transfer curve, matrix) and CIE 15 (L*a*b*, D65 white)."""
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    matrix = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    white = (0.9505, 1.0, 1.089)
    xyz = [sum(m * c for m, c in zip(row, linear, strict=True)) / w for row, w in zip(matrix, white, strict=True)]
    fx, fy, fz = (t ** (1 / 3) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29 for t in xyz)
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)
