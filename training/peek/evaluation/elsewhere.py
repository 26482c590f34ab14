"""Pictures that are none of `peek`'s world, made by procedure: they stand in for the photographs we cannot ship.

Each is computed with its longer side at most 480 px and enlarged smoothly: a model that is given 200 px sees no
difference, and a large one is ready in tens of milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.peek.evaluation.lettering import FONTS, cover

Pixels = npt.NDArray[np.uint8]
"""[height, width, 3]."""
Plane = npt.NDArray[Any]
"""[height, width] or [height, width, 3], floats."""

_LONGEST = 480


def picture(kind: str, width: int, height: int, seed: int) -> Pixels:
    """A picture of a kind of `KINDS`; the same seed and shape give the same one."""
    share = min(1.0, _LONGEST / max(width, height))
    share /= 2 if kind == "render" else 1  # each of its pixels costs a hundred of the others'
    size = max(16, round(width * share)), max(16, round(height * share))
    made = np.rint(np.clip(KINDS[kind](*size, np.random.default_rng(seed)), 0, 255)).astype(np.uint8)
    return np.asarray(Image.fromarray(made).resize((width, height), Image.Resampling.BICUBIC))


def _cloud(width: int, height: int, rng: np.random.Generator, steepness: float = 1.0) -> Plane:
    """Noise whose amplitude falls as 1/f^steepness, 0..1, [h, w].

    Source: the mean spectrum of natural pictures, D. J. Field, "Relations between the statistics of natural images and
    the response properties of cortical cells", JOSA A 4 (1987).
    """
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((height, width))) / frequency**steepness
    plane: Plane = np.fft.irfft2(spectrum, (height, width))
    low, high = np.percentile(plane, (1, 99))
    made: Plane = np.clip((plane - low) / (high - low), 0, 1)
    return made


def _noise(width: int, height: int, rng: np.random.Generator) -> Plane:
    """1/f noise, its three channels partly alike as in nature."""
    shared, steepness = _cloud(width, height, rng), rng.uniform(0.9, 1.5)
    own = np.stack([_cloud(width, height, rng, steepness) for _ in range(3)], axis=-1)
    mix = rng.uniform(0.2, 0.7)
    return 255 * (mix * shared[..., None] + (1 - mix) * own)


def _terrain(width: int, height: int, rng: np.random.Generator) -> Plane:
    """Hills seen from above: heights tinted from water to snow, lit from one side."""
    heights = _cloud(width, height, rng, rng.uniform(1.6, 2.0))
    south, east = np.gradient(heights * max(width, height) * rng.uniform(0.06, 0.16))
    normal = np.stack([-east, -south, np.ones_like(east)], axis=-1)
    angle = rng.uniform(0, 2 * np.pi)
    sun = np.array([np.cos(angle), np.sin(angle), 1.0]) / np.sqrt(2)
    light = np.clip(normal @ sun / np.linalg.norm(normal, axis=-1), 0.1, 1)
    stops = np.array([0.0, 0.3, 0.36, 0.6, 0.85, 1.0])
    tints = np.array([(24, 62, 110), (58, 120, 160), (205, 190, 140), (84, 122, 62), (120, 104, 88), (240, 240, 245)])
    tinted = np.stack([np.interp(heights, stops, tints[:, c] + rng.uniform(-12, 12)) for c in range(3)], axis=-1)
    made: Plane = tinted * light[..., None] * 1.25
    return made


def _render(width: int, height: int, rng: np.random.Generator) -> Plane:
    """Balls, boxes and rings on a floor: rays marched through signed distances, one lamp, shadows, haze."""
    bodies = [
        (int(rng.integers(3)), np.array([rng.uniform(-2.2, 2.2), 0.0, rng.uniform(3, 7)]), rng.uniform(0.5, 0.9))
        for _ in range(rng.integers(3, 6))
    ]
    paints = np.concatenate([rng.uniform(60, 255, (len(bodies), 3)), rng.uniform(90, 190, (1, 3))])

    def scene(p: Plane) -> tuple[Plane, npt.NDArray[np.intp]]:
        distances = [_body(kind, p - place - np.array([0, size, 0]), size) for kind, place, size in bodies]
        every = np.stack([*distances, p[..., 1]], axis=-1)
        return every.min(axis=-1), every.argmin(axis=-1)

    x = (np.arange(width) + 0.5 - width / 2) / min(width, height)
    y = (height / 2 - np.arange(height) - 0.5) / min(width, height)
    rays = np.stack(np.broadcast_arrays(x[None, :], y[:, None] - 0.25, np.ones((1, 1))), axis=-1)
    rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    eye = np.array([0.0, rng.uniform(1.4, 2.2), -1.0])
    travelled = _march(scene, eye, rays, 40)
    hit = eye + travelled[..., None] * rays
    step = 1e-3
    slope = [scene(hit + step * axis)[0] - scene(hit - step * axis)[0] for axis in np.eye(3)]
    normal = np.stack(slope, axis=-1) / (2 * step)
    lamp = np.array([rng.uniform(-0.8, 0.8), 1.0, rng.uniform(-0.9, -0.2)])
    lamp /= np.linalg.norm(lamp)
    lit = np.clip(normal @ lamp, 0, 1) * (_march(scene, hit + 0.02 * normal, lamp, 18) > 6)
    shaded = paints[scene(hit)[1]] * (0.3 + 0.7 * lit[..., None])
    sky = np.array([150, 180, 215]) + 60 * y[:, None, None]
    haze = np.clip((travelled - 6) / 14, 0, 1)[..., None]
    made: Plane = shaded * (1 - haze) + sky * haze
    return made


def _march(
    scene: Callable[[Plane], tuple[Plane, npt.NDArray[np.intp]]], start: Plane, rays: Plane, steps: int
) -> Plane:
    """How far each ray gets before it meets something; at most 20."""
    travelled: Plane = np.zeros(np.broadcast_shapes(start.shape, rays.shape)[:-1])
    for _ in range(steps):
        travelled = np.minimum(travelled + scene(start + travelled[..., None] * rays)[0], 20.0)
    return travelled


def _body(kind: int, p: Plane, size: float) -> Plane:
    """Signed distance to a ball, a rounded box or a lying ring. Source: Inigo Quilez, "3D distance functions"."""
    if kind == 0:
        ball: Plane = np.linalg.norm(p, axis=-1) - size
        return ball
    if kind == 1:
        q = np.abs(p) - 0.8 * size
        box: Plane = np.linalg.norm(np.maximum(q, 0), axis=-1) + np.minimum(q.max(axis=-1), 0) - 0.08
        return box
    lying = p + np.array([0, 0.7 * size, 0])
    around = np.hypot(lying[..., 0], lying[..., 2]) - 0.75 * size
    ring: Plane = np.hypot(around, lying[..., 1]) - 0.3 * size
    return ring


def _texture(width: int, height: int, rng: np.random.Generator) -> Plane:
    """Grain that has been bent and banded: wood, marble, cloth, sand."""
    cloud = _cloud(width, height, rng, rng.uniform(1.0, 1.8))
    x, y = np.arange(width)[None, :] / _LONGEST, np.arange(height)[:, None] / _LONGEST
    angle = rng.uniform(0, np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    bands = {
        0: np.sin(2 * np.pi * (rng.uniform(12, 30) * along + rng.uniform(2, 6) * cloud)),
        1: np.sin(rng.uniform(60, 160) * along) * np.sin(rng.uniform(60, 160) * across),
        2: 2 * rng.random((height, width)) - 1,
    }[int(rng.integers(3))]
    share = np.clip(0.5 + 0.3 * bands + 0.5 * (cloud - 0.5), 0, 1)[..., None]
    dark, bright = rng.uniform(20, 130, 3), rng.uniform(120, 250, 3)
    made: Plane = dark + share * (bright - dark) + rng.normal(0, 5, (height, width, 1))
    return made


def _collage(width: int, height: int, rng: np.random.Generator) -> Plane:
    """Pieces of textures, noise and hills, cut along random lines and laid over each other."""
    makers = (_texture, _noise, _terrain)
    canvas = _texture(width, height, rng)
    x, y = np.arange(width)[None, :] / width, np.arange(height)[:, None] / height
    for _ in range(rng.integers(4, 8)):
        angle, (cx, cy), reach = rng.uniform(0, np.pi), rng.uniform(0, 1, 2), rng.uniform(0.15, 0.45, 2)
        u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
        piece = (np.abs(u) < reach[0]) & (np.abs(v + 0.3 * u) < reach[1])
        canvas = np.where(piece[..., None], makers[int(rng.integers(3))](width, height, rng), canvas)
    return canvas


def _screenshot(width: int, height: int, rng: np.random.Generator) -> Plane:
    """A window of some program: a bar, a list at the side, paragraphs of small print, a photograph."""
    dark = rng.random() < 0.4
    paper, ink = (rng.uniform(20, 50, 3), 215.0) if dark else (rng.uniform(235, 255, 3), 45.0)
    canvas = np.broadcast_to(paper, (height, width, 3)).copy()
    bar, side = max(6, height // 12), max(8, int(width * rng.uniform(0.18, 0.28)))
    canvas[:bar] = rng.uniform(40, 220, 3)
    canvas[bar:, :side] = paper * 0.9 + 12
    shot_height, shot_width = height // 3, (width - side) // 2
    canvas[bar + 4 : bar + 4 + shot_height, side + 4 : side + 4 + shot_width] = _noise(shot_width, shot_height, rng)
    font, letters = FONTS[int(rng.integers(len(FONTS)))], list("AEIORSTLNMD")
    pitch = max(7.0, height / rng.uniform(22, 30))
    for row in np.arange(bar + pitch, height - pitch, pitch):
        left = side + 8 + (shot_width if row < bar + 8 + shot_height + pitch / 2 else 0)
        for start, end in ((4, side - 4), (left, width - 6 - rng.uniform(0, 0.3) * (width - left))):
            _print_words(canvas, (start, end, float(row)), 0.5 * pitch, font, ink, letters, rng)
    return canvas


def _print_words(
    canvas: Plane,
    line: tuple[float, float, float],
    cap_height: float,
    font: str,
    ink: float,
    letters: list[str],
    rng: np.random.Generator,
) -> None:
    """Small print from `line`'s start to its end, both x, at its y."""
    start, end, y = line
    count = int((end - start) / cap_height)
    if count < 2:
        return
    text = "".join(rng.choice([*letters, " "], count))
    found = cover(text.strip() or "A", font, cap_height, ((start + end) / 2, y))
    top, left = max(0, found.top), max(0, found.left)
    values = found.values[top - found.top : canvas.shape[0] - found.top, left - found.left :]
    values = values[:, : canvas.shape[1] - left, None]
    patch = canvas[top : top + values.shape[0], left : left + values.shape[1]]
    patch += values * (ink - patch)


KINDS: dict[str, Callable[[int, int, np.random.Generator], Plane]] = {
    "noise": _noise,
    "terrain": _terrain,
    "render": _render,
    "collage": _collage,
    "texture": _texture,
    "screenshot": _screenshot,
}
