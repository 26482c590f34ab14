"""From a `Scene` to pixels and dense labels.

The picture is drawn larger than it will be seen, worn a little (blur, noise, JPEG), and scaled down
with the filter the server uses, so that training pixels look like anybody's picture after resizing.
"""

from __future__ import annotations

import io
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from training.peek.world import COLOURS, DIRECTIONS, SHAPES, TOKEN_PX, Colour, Scene, Thing

IGNORE: Final = -100
NOTHING: Final = len(SHAPES)
"""The shape label of a token that shows background only."""

_MASK_PX: Final = 7
"""Side of a token in the label mask: coverage in steps of 2 %, at a sixteenth of the cost."""

_FILTERS: Final = (Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS, Image.Resampling.NEAREST)
Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int8]


class TokenLabels(NamedTuple):
    """What each vision token shows, row by row; IGNORE where a question has no answer."""

    shape: Labels
    colour: Labels
    direction: Labels
    cell: Labels
    background: Labels


def _points(thing: Thing, scene: Scene, scale_x: float, scale_y: float) -> list[tuple[float, float]]:
    centre_x, centre_y = thing.x * scene.width, thing.y * scene.height
    return [
        ((centre_x + x * thing.radius_px) * scale_x - 0.5, (centre_y + y * thing.radius_px) * scale_y - 0.5)
        for x, y in thing.outline
    ]


def _gradient(size: tuple[int, int], rgb: Colour, strength: float, rng: np.random.Generator) -> Image.Image:
    """A smooth field of shades around `rgb`, from its four corners."""
    corners = np.clip(np.array(rgb) + rng.uniform(-strength, strength, (2, 2, 1)), 0, 255)
    return Image.fromarray(corners.astype(np.uint8), "RGB").resize(size, Image.Resampling.BICUBIC)


def _border(thing: Thing, scene: Scene, rng: np.random.Generator) -> Colour:
    """The colour of a line around a shape: dark, or a darker shade of its own."""
    if rng.random() < 0.5 and max(scene.rgb) > 60 and thing.colour != "black":
        return (0, 0, 0)
    red, green, blue = (int(v * 0.6) for v in thing.rgb)
    return red, green, blue


def _stroke(canvas: ImageDraw.ImageDraw, points: list[tuple[float, float]], rgb: Colour, width: int) -> None:
    half = len(points) // 2
    ring = len(points) > 60  # two loops with a seam that must stay invisible
    loops = (points[:half], points[half:]) if ring else ([*points, points[0]],)
    for loop in loops:
        canvas.line(loop, fill=rgb, width=width, joint="curve")


def _paint(scene: Scene, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    picture = Image.new("RGB", size, scene.rgb)
    if rng.random() < 0.15:
        picture = _gradient(size, scene.rgb, rng.uniform(4, 22), rng)
    canvas = ImageDraw.Draw(picture)
    scale_x, scale_y = size[0] / scene.width, size[1] / scene.height
    bordered = rng.random() < 0.2
    shaded = rng.random() < 0.1
    for thing in scene.things:
        points = _points(thing, scene, scale_x, scale_y)
        if shaded:
            mask = Image.new("L", size)
            ImageDraw.Draw(mask).polygon(points, fill=255)
            picture.paste(_gradient(size, thing.rgb, rng.uniform(4, 20), rng), mask=mask)
        else:
            canvas.polygon(points, fill=thing.rgb)
        if bordered:
            width = max(1, round(thing.radius_px * scale_x * rng.uniform(0.03, 0.1)))
            _stroke(canvas, points, _border(thing, scene, rng), width)
    return picture


def _wear(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Slight blur, noise or JPEG artefacts, on a third of the pictures."""
    if rng.random() < 0.1:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.0) * picture.width / 170))
    if rng.random() < 0.12:
        array = np.asarray(picture).astype(np.int16)
        spread = int(rng.integers(2, 16))
        array = array + rng.integers(-spread, spread + 1, array.shape, dtype=np.int16)
        picture = Image.fromarray(np.clip(array, 0, 255).astype(np.uint8))
    if rng.random() < 0.15:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=int(rng.integers(45, 96)))
        picture = Image.open(file).convert("RGB")
    return picture


def draw(scene: Scene, rng: np.random.Generator) -> Pixels:
    """RGB pixels [height, width, 3] of `scene` at its target size."""
    target = (scene.width, scene.height)
    scale = float(rng.choice((1.0, 1.4, 2.0, 3.0, 4.0), p=(0.28, 0.22, 0.26, 0.16, 0.08))) * rng.uniform(0.9, 1.1)
    stretch = rng.uniform(0.93, 1.07)
    large = (max(28, round(target[0] * scale * stretch)), max(28, round(target[1] * scale)))
    picture = _paint(scene, large, rng)
    if rng.random() < 0.4:  # somebody else scaled it before: antialiasing, or too small a source
        seen = max(0.5, rng.uniform(0.5, 1.0) * scale)
        middle = (max(28, round(target[0] * seen)), max(28, round(target[1] * seen)))
        kind = _FILTERS[rng.integers(4)] if seen > 1 else _FILTERS[rng.integers(3)]
        picture = picture.resize(middle, kind)
    picture = _wear(picture, rng)
    if picture.size != target:
        picture = picture.resize(target, Image.Resampling.BICUBIC)
    return np.asarray(picture)


def label(scene: Scene) -> TokenLabels:
    """Dense labels: a token shows the thing that covers most of it, if that is enough to see."""
    mask = Image.new("L", (scene.columns * _MASK_PX, scene.rows * _MASK_PX))
    canvas = ImageDraw.Draw(mask)
    scale = _MASK_PX / TOKEN_PX
    for number, thing in enumerate(scene.things, 1):
        canvas.polygon(_points(thing, scene, scale, scale), fill=number)
    blocks = np.asarray(mask).reshape(scene.rows, _MASK_PX, scene.columns, _MASK_PX)
    grid = blocks.transpose(0, 2, 1, 3).reshape(scene.rows * scene.columns, -1)
    covered = np.zeros((len(grid), len(scene.things) + 1), np.int32)
    np.add.at(covered, (np.arange(len(grid))[:, None], grid), 1)
    covered[:, 0] = 0
    most, winner = covered.max(1), covered.argmax(1)
    seen = most >= 8

    def column(values: list[int]) -> Labels:
        return np.where(seen, np.array([IGNORE, *values], np.int8)[winner], IGNORE).astype(np.int8)

    things = scene.things
    shape = column([SHAPES.index(t.shape) for t in things])
    shape[most == 0] = NOTHING
    return TokenLabels(
        shape=shape,
        colour=column([COLOURS.index(t.colour) for t in things]),
        direction=column([DIRECTIONS.index(t.direction) if t.direction else IGNORE for t in things]),
        cell=column([t.cell for t in things]),
        background=np.full(len(grid), COLOURS.index(scene.background) if scene.background else IGNORE, np.int8),
    )
