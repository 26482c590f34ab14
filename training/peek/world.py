"""The small world `peek` lives in: coloured shapes on a background, as plain values.

A `Scene` says everything a question may ask about, before a single pixel exists; `draw` turns it
into pixels and `questions` into words. Keeping the three apart is what makes the labels true.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

COLOURS: Final = (
    "red", "green", "blue", "yellow", "orange", "purple",
    "pink", "brown", "black", "white", "grey", "cyan",
)  # fmt: skip
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
_MIN_CONTRAST: Final = 80.0
_CELL_MARGIN: Final = 0.16
"""How far, in cells, a centre keeps from the lines between cells."""

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
class Scene:
    """A picture of `rows` x `columns` vision tokens. `background` is None for a colour between names."""

    rows: int
    columns: int
    background: str | None
    rgb: Colour
    things: tuple[Thing, ...]

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


def _ngon(count: int, radius: float = 1.0, start: float = -90.0) -> list[tuple[float, float]]:
    angles = np.deg2rad(start + np.arange(count) * 360.0 / count)
    return [(radius * math.cos(a), radius * math.sin(a)) for a in angles]


def _arrow(rng: np.random.Generator) -> list[tuple[float, float]]:
    """An arrow that points right."""
    shaft, barb = rng.uniform(0.1, 0.3), rng.uniform(0.45, 0.85)
    if rng.random() < 0.25:  # an open head, as line drawings have
        thick = rng.uniform(0.1, 0.2)
        back = 1.0 - barb
        return [
            (-1, -thick), (1 - 2.4 * thick, -thick), (back - thick, -barb), (back + thick, -barb - thick),
            (1, 0), (back + thick, barb + thick), (back - thick, barb), (1 - 2.4 * thick, thick), (-1, thick),
        ]  # fmt: skip
    neck = rng.uniform(-0.1, 0.45)
    notch = rng.uniform(0, 0.12) if rng.random() < 0.2 else 0.0
    return [
        (-1, -shaft), (neck + notch, -shaft), (neck, -barb), (1, 0),
        (neck, barb), (neck + notch, shaft), (-1, shaft),
    ]  # fmt: skip


def _outline(shape: str, rng: np.random.Generator) -> list[tuple[float, float]]:
    """A closed polygon of about unit radius; a ring is one polygon with a seam."""
    if shape == "circle":
        squash = rng.uniform(0.9, 1.0) if rng.random() < 0.2 else 1.0
        return [(x, y * squash) for x, y in _ngon(48)]
    if shape == "ring":
        inner = rng.uniform(0.45, 0.82)
        outer_loop, inner_loop = _ngon(48), _ngon(48, inner)
        return [*outer_loop, outer_loop[0], inner_loop[0], *inner_loop[::-1]]
    if shape == "square":
        side = 0.89
        tall = side * (rng.uniform(0.94, 1.06) if rng.random() < 0.3 else 1.0)
        return [(-side, -tall), (side, -tall), (side, tall), (-side, tall)]
    if shape == "diamond":
        wide, tall = (1.0, 1.0) if rng.random() < 0.45 else (rng.uniform(0.6, 1.0), 1.0)
        wide, tall = (tall, wide) if rng.random() < 0.25 else (wide, tall)
        return [(0, -tall), (wide, 0), (0, tall), (-wide, 0)]
    if shape == "triangle":
        if rng.random() < 0.55:
            return _ngon(3)
        wide, top = rng.uniform(0.7, 1.0), rng.uniform(-0.35, 0.35)
        tall = rng.uniform(0.7, 1.0)
        return [(top if rng.random() < 0.3 else 0.0, -tall), (wide, tall * 0.8), (-wide, tall * 0.8)]
    if shape == "star":
        tips, notches = _ngon(5), _ngon(5, rng.uniform(0.34, 0.54), -54.0)
        return [point for pair in zip(tips, notches, strict=True) for point in pair]
    if shape == "cross":
        arm = rng.uniform(0.14, 0.4)
        quarter = [(arm, -1.0), (arm, -arm), (1.0, -arm)]
        return [(_turn(point, 90.0 * k)) for k in range(4) for point in quarter]
    return _arrow(rng)


def _turn(point: tuple[float, float], degrees: float) -> tuple[float, float]:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return point[0] * c - point[1] * s, point[0] * s + point[1] * c


_TURNS: Final = {"square": 12.0, "diamond": 8.0, "cross": 12.0, "arrow": 12.0, "star": 36.0, "triangle": 180.0}
_ARROW_DEGREES: Final = {"right": 0.0, "down": 90.0, "left": 180.0, "up": 270.0}


def make_thing(
    rng: np.random.Generator,
    background: Colour,
    centre: tuple[float, float],
    radius_px: float,
    *,
    shape: str | None = None,
    colour: str | None = None,
    avoid: str | None = None,
) -> Thing:
    """A thing at `centre` that stands out from `background` and isn't called `avoid`."""
    if shape is None:
        shape = "arrow" if rng.random() < 0.14 else SHAPES[rng.integers(len(SHAPES))]
    while True:
        name = colour or COLOURS[rng.integers(len(COLOURS))]
        rgb = shade(name, rng)
        if name != avoid and contrast(rgb, background) >= _MIN_CONTRAST:
            break
        colour = None
    direction = DIRECTIONS[rng.integers(4)] if shape == "arrow" else None
    limit = _TURNS.get(shape, 0.0)
    if rng.random() < (0.65 if shape == "triangle" else 0.5):
        limit = 0.0
    turn = rng.uniform(-limit, limit) + (_ARROW_DEGREES[direction] if direction else 0.0)
    points = tuple(_turn(point, turn) for point in _outline(shape, rng))
    return Thing(shape, name, rgb, direction, centre[0], centre[1], radius_px, points)


def _background(rng: np.random.Generator) -> tuple[str | None, Colour]:
    draw = rng.random()
    if draw < 0.3:
        return "white", shade("white", rng)
    if draw < 0.38:
        red, green, blue = rng.integers(0, 256, 3).tolist()
        return None, (red, green, blue)
    name = COLOURS[rng.integers(len(COLOURS))]
    return name, shade(name, rng)


def _place(
    rng: np.random.Generator, scene: Scene, radius_px: float, crowd: list[tuple[float, float, float]]
) -> tuple[float, float] | None:
    """A centre well inside one of the nine cells, clear of the edges and of everything in `crowd`."""
    cell_x, cell_y = rng.integers(3), rng.integers(3)
    x, y = ((c + rng.uniform(_CELL_MARGIN, 1 - _CELL_MARGIN)) / 3 for c in (cell_x, cell_y))
    px, py = x * scene.width, y * scene.height
    edge = radius_px * 0.97
    if not (edge <= px <= scene.width - edge and edge <= py <= scene.height - edge):
        return None
    if any(math.hypot(px - ox, py - oy) < (radius_px + other) * 1.06 + 2 for ox, oy, other in crowd):
        return None
    return x, y


def sample_scene(rng: np.random.Generator, rows: int, columns: int, count: int | None = None) -> Scene:
    """One to four shapes that don't touch, on one background. Repeats of a shape or colour are common."""
    background, rgb = _background(rng)
    scene = Scene(rows, columns, background, rgb, ())
    if count is None:
        count = int(rng.choice((1, 2, 3, 4), p=(0.24, 0.36, 0.31, 0.09)))
    short = min(scene.width, scene.height)
    largest = (0.33, 0.25, 0.21, 0.17)[count - 1]
    same_shape, same_colour = ((0.3, 0.25), (0.9, 0.3), (0.3, 0.9))[rng.choice(3, p=(0.7, 0.17, 0.13))]
    crowd: list[tuple[float, float, float]] = []
    things: list[Thing] = []
    for attempt in range(200):
        if len(things) == count:
            break
        shrink = 0.985**attempt
        radius = short * max(0.085, rng.uniform(0.085, largest) * shrink)
        centre = _place(rng, scene, radius, crowd)
        if centre is None:
            continue
        shape = colour = None
        if things:  # a sibling makes counting and hard negatives possible
            draw, sibling = rng.random(), things[rng.integers(len(things))]
            shape = sibling.shape if draw < same_shape else None
            colour = sibling.colour if draw > 1 - same_colour else None
        things.append(make_thing(rng, rgb, centre, radius, shape=shape, colour=colour, avoid=background))
        crowd.append((centre[0] * scene.width, centre[1] * scene.height, radius))
    return replace(scene, things=tuple(things))


def sample_tiles(rng: np.random.Generator, rows: int, columns: int) -> Scene:
    """A shifted grid full of shapes: many dense labels per picture, for the first stage."""
    background, rgb = _background(rng)
    scene = Scene(rows, columns, background, rgb, ())
    step = float(rng.choice((30, 38, 48, 60, 80)))
    shift_x, shift_y = rng.uniform(0, step, 2)
    things = []
    for top in np.arange(shift_y - step, scene.height, step):
        for left in np.arange(shift_x - step, scene.width, step):
            radius = step * rng.uniform(0.3, 0.48)
            slack = step / 2 - radius
            x = left + step / 2 + rng.uniform(-slack, slack)
            y = top + step / 2 + rng.uniform(-slack, slack)
            inside = radius * 0.9 < x < scene.width - radius * 0.9 and radius * 0.9 < y < scene.height - radius * 0.9
            if inside and rng.random() < 0.85:
                centre = (x / scene.width, y / scene.height)
                things.append(make_thing(rng, rgb, centre, radius, avoid=background))
    return replace(scene, things=tuple(things))
