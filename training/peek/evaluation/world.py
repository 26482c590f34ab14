"""Scenes whose truth is beyond dispute: shades no one names otherwise, figures apart, centres well inside a cell."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from training.peek.evaluation.drawing import DIRECTIONS, POSITIONS, Figure, Scene

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

_MIN_CONTRAST = 40.0
"""CIE76 distance between a figure and the background: ten times what a careful eye tells apart."""

Rgb = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Wish:
    """A figure that a question needs: what is left open is drawn by lot."""

    shape: str
    colour: str
    position: str | None = None
    direction: str | None = None


def shade(colour: str, rng: Random) -> Rgb:
    """A shade of the colour, drawn evenly from its box."""
    hue, saturation, value = (rng.uniform(*span) for span in _SHADES[colour])
    red, green, blue = colorsys.hsv_to_rgb(hue / 360 % 1, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def compose(
    wishes: Sequence[Wish],
    rng: Random,
    *,
    background: str | None = None,
    avoid: str | None = None,
    max_side: int = 1200,
    size: tuple[int, int] | None = None,
) -> Scene:
    """A scene with exactly these figures, none touching another, on a background unlike any of them.

    `avoid` is a colour that the background must not have. Without a `size` (width, height) the sides are
    56..`max_side` px and the ratio is up to 3:1.
    """
    while True:  # a draw that does not come out (too crowded, too little contrast) is drawn again, whole
        width, height = size or _size(rng, max_side)
        figures = _place(wishes, width, height, rng)
        ground = background or rng.choice([c for c in COLOURS if c != avoid and all(c != w.colour for w in wishes)])
        ground_rgb = shade(ground, rng)
        if figures is None or any(_contrast(ground_rgb, figure.rgb) < _MIN_CONTRAST for figure in figures):
            continue
        encoding = "png" if rng.random() < 0.5 else f"jpeg:{rng.randint(60, 95)}"
        return Scene(width, height, ground, ground_rgb, figures, encoding)


def cell_of(x: float, y: float, width: float, height: float) -> str:
    """The position word of a point: the cell of the 3x3 grid that holds it."""
    column, row = min(2, int(3 * x / width)), min(2, int(3 * y / height))
    return POSITIONS[3 * row + column]


def _size(rng: Random, max_side: int) -> tuple[int, int]:
    ratio = 3 ** (rng.random() ** 1.5)  # 1..3, squarish ones more often
    long = math.exp(rng.uniform(math.log(56 * ratio), math.log(max_side)))
    long, short = round(long), max(56, round(long / ratio))
    return (long, short) if rng.random() < 0.5 else (short, long)


def _place(wishes: Sequence[Wish], width: int, height: int, rng: Random) -> tuple[Figure, ...] | None:
    """Figures in free places, or None when this try found no room."""
    short = min(width, height)
    placed: list[Figure] = []
    for wish in wishes:
        # one that stands in a cell of the border row must fit between the cell's middle and the picture's edge
        largest = (0.16 if wish.position else 0.2 if len(wishes) > 2 else 0.3) * short
        radius = rng.uniform(max(8.5, 0.11 * short), max(9.0, largest))
        figure = _try_places(wish, radius, width, height, placed, rng)
        if figure is None:
            return None
        placed.append(figure)
    rng.shuffle(placed)
    return tuple(placed)


def _try_places(
    wish: Wish, radius: float, width: int, height: int, placed: Sequence[Figure], rng: Random
) -> Figure | None:
    for _ in range(40):
        if wish.position:
            row, column = divmod(POSITIONS.index(wish.position), 3)
            x = width * (column + rng.uniform(0.25, 0.75)) / 3
            y = height * (row + rng.uniform(0.25, 0.75)) / 3
        else:
            x, y = rng.uniform(radius, width - radius), rng.uniform(radius, height - radius)
        inside = radius <= x <= width - radius and radius <= y <= height - radius
        apart = all(math.hypot(x - f.x, y - f.y) >= 1.08 * (radius + f.radius) + 2 for f in placed)
        if inside and apart:
            return Figure(
                shape=wish.shape,
                colour=wish.colour,
                rgb=shade(wish.colour, rng),
                x=round(x, 2),
                y=round(y, 2),
                radius=round(radius, 2),
                tilt=round(rng.uniform(-8, 8), 1),
                proportion=round(rng.random(), 2),
                direction=wish.direction or (rng.choice(DIRECTIONS) if wish.shape == "arrow" else None),
            )
    return None


def _contrast(a: Rgb, b: Rgb) -> float:
    """CIE76 colour difference: Euclidean distance in CIELAB under D65."""
    return math.dist(_to_lab(a), _to_lab(b))


def _to_lab(rgb: Rgb) -> tuple[float, float, float]:
    """sRGB to CIELAB. Source: IEC 61966-2-1 (transfer curve, matrix) and CIE 15 (L*a*b*, D65 white)."""
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
    matrix = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    white = (0.9505, 1.0, 1.089)
    xyz = [sum(m * c for m, c in zip(row, linear, strict=True)) / w for row, w in zip(matrix, white, strict=True)]
    fx, fy, fz = (t ** (1 / 3) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29 for t in xyz)
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)
