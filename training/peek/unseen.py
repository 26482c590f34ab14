"""Pictures from outside the world: noise, terrain, textures, collages, scribbles, shaded solids, screens.

They stand for all that the model cannot know, photographs first of all. None shows a plain shape, a
word or a chart on a plain background.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Rng = np.random.Generator
Field = npt.NDArray[np.floating[Any]]


def _spectrum(rng: Rng, height: int, width: int, exponent: float, channels: int = 1) -> Field:
    """Noise whose power falls as 1/f^(2*exponent), each channel in 0..1: 0 is white, 2 is clouds."""
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    falloff = np.maximum(np.hypot(y, x), 1.0 / max(height, width)) ** -exponent
    shape = (channels, height, width // 2 + 1)
    waves = np.fft.irfft2((rng.normal(size=shape) + 1j * rng.normal(size=shape)) * falloff, s=(height, width))
    low, high = np.percentile(waves, (1, 99), axis=(1, 2), keepdims=True)
    return np.asarray(np.clip((waves - low) / (high - low + 1e-9), 0, 1).transpose(1, 2, 0), np.float32)


def _palette(rng: Rng, count: int) -> Field:
    """Colours that go together, 0..255."""
    base, spread = rng.uniform(30, 225, 3), rng.uniform(15, 110)
    return np.clip(base + rng.normal(0, spread, (count, 3)), 0, 255)


def _coloured(rng: Rng, values: Field, count: int | None = None) -> Field:
    """A field of 0..1 through a smooth palette."""
    stops = _palette(rng, count or int(rng.integers(2, 6)))
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(values, at, stops[:, channel]) for channel in range(3)], -1)


def _lit(rng: Rng, relief: Field, strength: float) -> Field:
    """Light from one side on a height field, around 1."""
    down, across = np.gradient(relief)
    angle = rng.uniform(0, 2 * np.pi)
    return np.clip(1 + strength * (down * np.sin(angle) + across * np.cos(angle)), 0.35, 1.6)


def _grid(height: int, width: int) -> tuple[Field, Field]:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return y / height, x / width


def noise(rng: Rng, height: int, width: int) -> Field:
    exponent = rng.uniform(0, 2.4)
    if rng.random() < 0.5:
        return _coloured(rng, _spectrum(rng, height, width, exponent)[..., 0])
    mixed = _spectrum(rng, height, width, exponent, 3) @ rng.dirichlet((1, 1, 1), 3).astype(np.float32).T
    return mixed * rng.uniform(140, 255) + rng.uniform(0, 40, 3)


def terrain(rng: Rng, height: int, width: int) -> Field:
    relief = _spectrum(rng, height, width, rng.uniform(1.2, 2.0))[..., 0]
    land = _coloured(rng, relief, 5) * _lit(rng, relief, rng.uniform(4, 20))[..., None]
    if rng.random() < 0.6:  # a horizon: sky above hills
        y, _ = _grid(height, width)
        for depth in range(int(rng.integers(1, 4))):
            ridge = rng.uniform(0.25, 0.65) + 0.12 * depth + 0.2 * (_spectrum(rng, 4, width, 1.5)[0, :, 0] - 0.5)
            sky = _coloured(rng, np.clip(y / 0.7, 0, 1), 2)
            land = np.where((y < ridge[None])[..., None], sky if depth == 0 else land, land * rng.uniform(0.6, 1.1))
    return land


def plasma(rng: Rng, height: int, width: int) -> Field:
    y, x = _grid(height, width)
    total = np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(2, 6))):
        fy, fx, phase = rng.normal(0, 12), rng.normal(0, 12), rng.uniform(0, 6.3)
        bend = rng.normal(0, 3) * np.hypot(y - rng.random(), x - rng.random())
        total += np.sin(fy * y + fx * x + phase + bend)
    return _coloured(rng, (np.sin(total * rng.uniform(0.5, 2)) + 1) / 2)


def gradients(rng: Rng, height: int, width: int) -> Field:
    """Blends of several colours at once: an out-of-focus scene, unlike a background of nearly one colour."""
    small = rng.uniform(0, 255, (int(rng.integers(3, 7)), int(rng.integers(3, 7)), 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), np.float32)


def voronoi(rng: Rng, height: int, width: int) -> Field:
    y, x = _grid(height, width)
    points = rng.random((int(rng.integers(12, 60)), 2))
    away = ((y[..., None] - points[:, 0].astype(np.float32)) ** 2) + (
        x[..., None] - points[:, 1].astype(np.float32)
    ) ** 2
    nearest = away.argmin(-1)
    cells = rng.uniform(0, 255, (len(points), 3)) if rng.random() < 0.5 else _palette(rng, len(points))
    shaded = 1 - rng.uniform(0, 2.5) * np.sqrt(away.min(-1))
    return cells[nearest] * np.clip(shaded, 0.3, 1)[..., None]


def weave(rng: Rng, height: int, width: int) -> Field:
    """Stripes, checks, dots and cloth, with shading over them."""
    y, x = _grid(height, width)
    turn, often = rng.uniform(0, np.pi), rng.uniform(25, 130)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    u = u + rng.uniform(0, 0.05) * np.sin(v * rng.uniform(3, 20))
    kind = rng.integers(4)
    stripes, across = np.sin(u * often), np.sin(v * often * rng.uniform(0.5, 1.5))
    values = (stripes, np.sign(stripes * across), stripes * across, np.maximum(stripes, across))[kind] / 2 + 0.5
    shade = _spectrum(rng, height, width, rng.uniform(0.5, 2))[..., 0]
    return _coloured(rng, values, int(rng.integers(2, 4))) * (0.55 + 0.6 * shade[..., None])


def blobs(rng: Rng, height: int, width: int) -> Field:
    """Many soft overlapping patches."""
    picture = Image.fromarray(_coloured(rng, _spectrum(rng, height, width, 2)[..., 0]).astype(np.uint8))
    canvas = ImageDraw.Draw(picture)
    for colour in _palette(rng, int(rng.integers(15, 60))):
        x, y, a, b = rng.uniform(0, width), rng.uniform(0, height), *rng.uniform(0.03, 0.25, 2) * min(width, height)
        canvas.ellipse((x - a, y - b, x + a, y + b), fill=tuple(int(c) for c in colour))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(rng.uniform(2, 9))), np.float32)


def solids(rng: Rng, height: int, width: int) -> Field:
    """Shaded balls and boxes on a lit floor, as renderers make them."""
    y, x = _grid(height, width)
    horizon = rng.uniform(0.25, 0.7)
    wall, floor = _palette(rng, 2)
    depth = np.clip((y - horizon) / (1 - horizon), 0, 1)
    out = np.where((y < horizon)[..., None], wall * (0.5 + 0.6 * y[..., None]), floor * (0.45 + 0.6 * depth[..., None]))
    out = out * (1 + 0.25 * (_spectrum(rng, height, width, 1)[..., :1] - 0.5))
    light = rng.normal(0, 1, 3)
    light[2] = abs(light[2]) + 0.5
    light /= np.linalg.norm(light)
    aspect = width / height
    for colour in rng.uniform(20, 255, (int(rng.integers(2, 7)), 3)):
        cx, cy, radius = rng.random() * aspect, rng.uniform(0.2, 0.95), rng.uniform(0.08, 0.35)
        u, v = (x * aspect - cx) / radius, (y - cy) / radius
        if rng.random() < 0.6:
            inside = u * u + v * v < 1
            w = np.sqrt(np.clip(1 - u * u - v * v, 0, 1))
            glow = np.clip(u * light[0] + v * light[1] + w * light[2], 0, 1)
            shine = glow ** rng.uniform(8, 40) * rng.uniform(0, 180)
            surface = colour * (0.18 + 0.85 * glow[..., None]) + shine[..., None]
        else:
            lean = rng.uniform(0.2, 0.6)
            inside = (abs(u) < 0.8) & (abs(v) < 0.8)
            side = inside & (u > 0.8 - lean)
            surface = colour * np.where(side, 0.45, 0.95 - 0.25 * v)[..., None]
        shadow = np.clip(1.25 - np.hypot(u - 0.3, (v - 0.9) * 3) * 0.8, 0, 0.6)
        out = np.where(inside[..., None], surface, out * (1 - shadow[..., None]))
    return out


def scribbles(rng: Rng, height: int, width: int) -> Field:
    """Many lines without a meaning."""
    picture = Image.new("RGB", (width, height), tuple(int(v) for v in rng.uniform(120, 255, 3)))
    canvas = ImageDraw.Draw(picture)
    for colour in _palette(rng, int(rng.integers(8, 40))):
        steps = rng.normal(0, rng.uniform(0.05, 0.2), (int(rng.integers(3, 30)), 2)).cumsum(0) + rng.random(2)
        points = [(float(a) * width, float(b) * height) for a, b in steps]
        canvas.line(points, fill=tuple(int(c) for c in colour), width=int(rng.integers(1, 6)), joint="curve")
    return np.asarray(picture, np.float32)


def screen(rng: Rng, height: int, width: int) -> Field:
    """Windows, panels and rows of grey bars that stand for unreadable text."""
    tone = rng.uniform(0, 255)
    picture = Image.new("RGB", (width, height), tuple(int(v) for v in np.clip(tone + rng.normal(0, 12, 3), 0, 255)))
    canvas = ImageDraw.Draw(picture)
    for colour in _palette(rng, int(rng.integers(3, 9))):
        left, top = rng.uniform(-0.1, 0.8) * width, rng.uniform(-0.1, 0.8) * height
        right, bottom = left + rng.uniform(0.15, 0.9) * width, top + rng.uniform(0.1, 0.7) * height
        canvas.rectangle((left, top, right, bottom), fill=tuple(int(c) for c in colour))
        ink = tuple(int(c) for c in np.clip(colour + (90 if colour.mean() < 128 else -90), 0, 255))
        y, step = top + 4, int(rng.integers(3, 9))
        while y < bottom - 3:
            x, end = left + 4, right - rng.uniform(4, 0.5 * (right - left) + 5)
            while x < end:
                word = rng.uniform(3, 22)
                canvas.rectangle((x, y, min(x + word, right), y + step * 0.45), fill=ink)
                x += word + rng.uniform(2, 4)
            y += step
    return np.asarray(picture, np.float32)


def collage(rng: Rng, height: int, width: int) -> Field:
    """Patches of all the others on top of one another."""
    out = _KINDS[int(rng.integers(len(_KINDS) - 1))](rng, height, width)
    for _ in range(int(rng.integers(3, 9))):
        tall, wide = (max(8, int(size * rng.uniform(0.15, 0.6))) for size in (height, width))
        y, x = int(rng.integers(0, height - tall + 1)), int(rng.integers(0, width - wide + 1))
        simple = _KINDS[int(rng.integers(6))](rng, tall, wide)
        out = np.array(out, np.float32)
        inside = np.ones((tall, wide), bool)
        if rng.random() < 0.4:
            v, u = np.mgrid[-1 : 1 : tall * 1j, -1 : 1 : wide * 1j]
            inside = u * u + v * v < 1
        patch = out[y : y + tall, x : x + wide]
        patch[inside] = simple[inside]
    return out


_KINDS: Final[tuple[Callable[[Rng, int, int], Field], ...]] = (
    noise, plasma, gradients, voronoi, weave, blobs, terrain, solids, scribbles, screen, collage,
)  # fmt: skip
KINDS: Final = {kind.__name__: kind for kind in _KINDS}
_WEIGHTS: Final = np.array((2.0, 1, 1, 1, 1, 1, 2, 2, 1, 1, 1.5)) / 14.5


def sample_kind(rng: Rng) -> str:
    return list(KINDS)[int(rng.choice(len(KINDS), p=_WEIGHTS))]


def paint(kind: str, seed: int, width: int, height: int) -> Image.Image:
    """The picture that `kind` and `seed` stand for, at any size from 56 px on a side."""
    values = KINDS[kind](np.random.default_rng(seed), height, width)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
