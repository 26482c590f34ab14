"""The small world `peek` lives in: shapes, words, charts, and pictures of something else, as plain values.

A `Scene` says everything a question may ask about, before a single pixel exists; `draw` turns it
into pixels and `questions` into words. Keeping the three apart is what makes the labels true.
"""

from __future__ import annotations

import math
import string
from dataclasses import dataclass
from typing import Final

import numpy as np

COLOURS: Final = (
    "red", "green", "blue", "yellow", "orange", "purple",
    "pink", "brown", "black", "white", "grey", "cyan",
)  # fmt: skip
CHARACTERS: Final = string.ascii_uppercase + string.digits
SHAPES: Final = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "arrow")
DIRECTIONS: Final = ("up", "down", "left", "right")
CELLS: Final = (
    "top left", "top", "top right",
    "left", "centre", "right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip

TOKEN_PX: Final = 28
"""One vision token covers 2x2 patches of 14 px."""

MIN_PIXELS: Final = 16 * TOKEN_PX**2
MAX_PIXELS: Final = 38_400
"""At most 48 vision tokens. Not a multiple of 28*28, so that the floor in the resizing rule never
hangs on the last bit of a square root (480x640 must be 6x8 tokens for every consumer)."""

# What people paint when they say the name: web colours, plotting palettes, paint-box primaries.
SHADES: Final[dict[str, tuple[tuple[int, int, int], ...]]] = {
    "red": ((255, 0, 0), (220, 20, 60), (214, 39, 40), (230, 25, 25), (204, 0, 0), (239, 68, 68)),
    "green": ((0, 128, 0), (0, 255, 0), (44, 160, 44), (34, 139, 34), (50, 205, 50), (0, 160, 80)),
    "blue": ((0, 0, 255), (31, 119, 180), (30, 64, 220), (65, 105, 225), (0, 0, 160), (37, 99, 235)),
    "yellow": ((255, 255, 0), (255, 221, 0), (240, 230, 40), (255, 235, 59), (250, 204, 21)),
    "orange": ((255, 165, 0), (255, 127, 14), (255, 140, 0), (245, 124, 0), (249, 115, 22)),
    "purple": ((128, 0, 128), (148, 103, 189), (120, 40, 180), (150, 50, 200), (106, 13, 173)),
    "pink": ((255, 192, 203), (255, 105, 180), (227, 119, 194), (255, 130, 180), (244, 143, 177)),
    "brown": ((139, 69, 19), (140, 86, 75), (121, 72, 32), (101, 67, 33), (150, 75, 0), (160, 82, 45)),
    "black": ((0, 0, 0), (10, 10, 10), (24, 24, 24), (32, 30, 34)),
    "white": ((255, 255, 255), (250, 250, 250), (245, 245, 245), (252, 250, 244)),
    "grey": ((128, 128, 128), (127, 127, 127), (105, 105, 105), (160, 160, 160), (144, 148, 152)),
    "cyan": ((0, 255, 255), (23, 190, 207), (0, 200, 220), (0, 188, 212), (64, 224, 230)),
}
MIN_CONTRAST: Final = 80.0

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape. `x`, `y` are its centre in 0..1; `radius_px` half its extent in target pixels."""

    shape: str
    colour: str
    rgb: Colour
    direction: str | None
    x: float
    y: float
    radius_px: float
    outline: tuple[tuple[float, float], ...]

    @property
    def cell(self) -> int:
        return min(int(self.y * 3), 2) * 3 + min(int(self.x * 3), 2)


@dataclass(frozen=True, slots=True)
class Line:
    """Capitals and digits in a row: (`x`, `y`) is its centre, `cap_px` how high its capitals are, in target pixels."""

    text: str
    font: int
    cap_px: float
    rgb: Colour
    x: float
    y: float
    tilt: float = 0.0


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a chart, its edges in target pixels."""

    label: str
    value: int
    colour: str
    rgb: Colour
    left: float
    right: float
    top: float


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars on a common base, from left to right. What is printed on them stands among the scene's lines."""

    bars: tuple[Bar, ...]
    base: float
    axis: Colour | None
    grid: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture of `rows` x `columns` vision tokens: shapes, lines of text, a chart, or none of them.

    `background` is None for a colour between names; `seed` decides what an `unseen` kind of picture shows.
    """

    rows: int
    columns: int
    background: str | None
    rgb: Colour
    things: tuple[Thing, ...] = ()
    lines: tuple[Line, ...] = ()
    chart: Chart | None = None
    unseen: str | None = None
    seed: int = 0

    @property
    def width(self) -> int:
        return self.columns * TOKEN_PX

    @property
    def height(self) -> int:
        return self.rows * TOKEN_PX


def fit(width: float, height: float) -> tuple[int, int]:
    """(rows, columns) of vision tokens for a picture: the resizing rule of Qwen2-VL."""
    rows, columns = max(1, round(height / TOKEN_PX)), max(1, round(width / TOKEN_PX))
    if rows * columns * TOKEN_PX**2 > MAX_PIXELS:
        scale = math.sqrt(width * height / MAX_PIXELS)
        rows = max(1, math.floor(height / scale / TOKEN_PX))
        columns = max(1, math.floor(width / scale / TOKEN_PX))
    elif rows * columns * TOKEN_PX**2 < MIN_PIXELS:
        scale = math.sqrt(MIN_PIXELS / (width * height))
        rows = math.ceil(height * scale / TOKEN_PX)
        columns = math.ceil(width * scale / TOKEN_PX)
    return rows, columns


def sample_grid(rng: np.random.Generator) -> tuple[int, int]:
    """A token grid as the server will see it: mostly at the maximum, since most pictures are larger."""
    limit = 3.0 if rng.random() < 0.93 else 4.2
    aspect = 1.0 if rng.random() < 0.25 else math.exp(rng.uniform(0, math.log(limit)))
    side = 600.0 if rng.random() < 0.8 else rng.uniform(56, 200)
    long, short = side * math.sqrt(aspect), side / math.sqrt(aspect)
    return fit(long, short) if rng.random() < 0.58 else fit(short, long)


def shade(colour: str, rng: np.random.Generator) -> Colour:
    """Some shade that people call `colour`."""
    anchors = SHADES[colour]
    first, second = (np.array(anchors[rng.integers(len(anchors))], float) for _ in range(2))
    mixed = first + (second - first) * (rng.random() if rng.random() < 0.4 else 0.0)
    if colour in ("black", "white", "grey"):
        mixed = mixed + rng.normal(0, 5) + rng.normal(0, 1.5, 3)
    else:
        mixed = mixed + rng.normal(0, 7, 3)
    red, green, blue = np.clip(np.round(mixed), 0, 255).astype(int).tolist()
    return red, green, blue


def contrast(one: Colour, other: Colour) -> float:
    return math.dist(one, other)


def sample_background(rng: np.random.Generator) -> tuple[str | None, Colour]:
    draw = rng.random()
    if draw < 0.3:
        return "white", shade("white", rng)
    if draw < 0.38:
        red, green, blue = rng.integers(0, 256, 3).tolist()
        return None, (red, green, blue)
    name = COLOURS[rng.integers(len(COLOURS))]
    return name, shade(name, rng)


def sample_ink(rng: np.random.Generator, background: Colour, name: str | None = None) -> tuple[str, Colour]:
    """A colour, by name and value, that stands out from `background`; `name` is a wish."""
    while True:
        colour = name or COLOURS[rng.integers(len(COLOURS))]
        rgb = shade(colour, rng)
        if contrast(rgb, background) >= MIN_CONTRAST:
            return colour, rgb
        name = None
