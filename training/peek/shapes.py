"""Scenes of shapes: their outlines, where they stand, and grids full of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

import numpy as np

from training.peek.world import (
    COLOURS,
    DIRECTIONS,
    MIN_CONTRAST,
    SHAPES,
    Colour,
    Scene,
    Thing,
    contrast,
    sample_background,
    shade,
)

_CELL_MARGIN: Final = 0.16
"""How far, in cells, a centre keeps from the lines between cells."""


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
        if name != avoid and contrast(rgb, background) >= MIN_CONTRAST:
            break
        colour = None
    direction = DIRECTIONS[rng.integers(4)] if shape == "arrow" else None
    limit = _TURNS.get(shape, 0.0)
    if rng.random() < (0.65 if shape == "triangle" else 0.5):
        limit = 0.0
    turn = rng.uniform(-limit, limit) + (_ARROW_DEGREES[direction] if direction else 0.0)
    points = tuple(_turn(point, turn) for point in _outline(shape, rng))
    return Thing(shape, name, rgb, direction, centre[0], centre[1], radius_px, points)


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


_COUNTS: Final = (0.2, 0.33, 0.27, 0.12, 0.08)
_LARGEST: Final = (0.36, 0.28, 0.22, 0.18, 0.155)
_SMALLEST: Final = 0.075
"""Half extents, in short sides of the picture: the largest by how many things there are."""


def sample_shapes(rng: np.random.Generator, rows: int, columns: int, count: int | None = None) -> Scene:
    """One to five shapes that don't touch, on one background. Repeats of a shape or colour are common, and so are
    pairs of which one is at least half as large again."""
    background, rgb = sample_background(rng)
    scene = Scene(rows, columns, background, rgb)
    count = count or 1 + int(rng.choice(5, p=_COUNTS))
    short = min(scene.width, scene.height)
    same_shape, same_colour = ((0.25, 0.2), (0.9, 0.3), (0.3, 0.9))[rng.choice(3, p=(0.7, 0.17, 0.13))]
    in_line = rng.random() < 0.25
    crowd: list[tuple[float, float, float]] = []
    things: list[Thing] = []
    for attempt in range(200):
        if len(things) == count:
            break
        radius = short * max(_SMALLEST, rng.uniform(_SMALLEST, _LARGEST[count - 1]) * 0.985**attempt)
        if things and attempt < 60 and rng.random() < 0.5:  # much larger or smaller than the one before
            ratio = things[-1].radius_px * float(rng.choice((rng.uniform(1.55, 2.4), 1 / rng.uniform(1.55, 2.4))))
            radius = min(max(ratio, short * _SMALLEST), short * _LARGEST[count - 1])
        centre = _place(rng, scene, radius, crowd)
        if centre is None:
            continue
        if in_line and things and attempt < 80:  # beside or below the one before: relations need a clear axis
            other = things[int(rng.integers(len(things)))]
            dx, dy = abs(centre[0] - other.x) * scene.width, abs(centre[1] - other.y) * scene.height
            if max(dx, dy) < 1.7 * min(dx, dy):
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
    background, rgb = sample_background(rng)
    scene = Scene(rows, columns, background, rgb)
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
