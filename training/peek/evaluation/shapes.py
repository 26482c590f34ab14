"""The eight shapes as signed distances, and how large each looks."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "ring", "arrow")
ROUND = ("circle", "ring")
"""Shapes that an outline would turn into one another."""

Array = npt.NDArray[np.float64]


def signed_distance(shape: str, radius: float, proportion: float, u: Array, v: Array) -> Array:
    """Distance to the shape's edge in pixels, negative inside, [h, w].

    `u` and `v` count from its centre in its own upright frame, v downwards; an arrow points up. `radius` is that of
    the circle around the shape; `proportion` is 0..1 from slender to stout. Raises `ValueError` for another shape.
    """
    if shape == "circle":
        return np.hypot(u, v) - 0.92 * radius
    if shape == "ring":
        inner = _between(0.66, 0.46, proportion)
        middle, half_band = (1.0 + inner) / 2 * radius, (1.0 - inner) / 2 * radius
        return np.abs(np.hypot(u, v) - middle) - half_band
    return _polygon_distance(np.asarray(outline(shape, proportion)) * radius, u, v)


def apparent_size(shape: str, radius: float, proportion: float) -> float:
    """The square root of the area that the shape takes up to the eye, its hole counted in; pixels."""
    if shape in ROUND:
        return math.sqrt(math.pi) * radius * (0.92 if shape == "circle" else 1.0)
    x, y = np.asarray(outline(shape, proportion)).T
    return radius * math.sqrt(abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2)  # the shoelace formula


def outline(shape: str, proportion: float) -> list[tuple[float, float]]:
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
    raise ValueError(f"unknown shape {shape!r}; known are {', '.join(SHAPES)}")


def _polygon_distance(vertices: Array, u: Array, v: Array) -> Array:
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
    distance: Array = np.sqrt(nearest)
    return np.where(inside, -distance, distance)


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
