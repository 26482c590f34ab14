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

from training.peek import unseen
from training.peek.lettering import boxes, em_px, font_of
from training.peek.world import CHARACTERS, COLOURS, DIRECTIONS, SHAPES, TOKEN_PX, Chart, Colour, Line, Scene, Thing

IGNORE: Final = -100
NOTHING: Final = len(SHAPES)
"""The shape label of a token that shows background only."""
BLANK: Final = len(CHARACTERS)
"""The character label of a token in which no (further) character has its centre."""
READ_PER_TOKEN: Final = 4
"""Characters a token may hold: the smallest legible ones are a quarter of a token wide."""

_MASK_PX: Final = 7
"""Side of a token in the label mask: coverage in steps of 2 %, at a sixteenth of the cost."""

_FILTERS: Final = (Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.LANCZOS, Image.Resampling.NEAREST)
Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int8]


class TokenLabels(NamedTuple):
    """What each vision token shows, row by row; IGNORE where a question has no answer.

    `cell` is that of the thing on the token, `place` the token's own. `under` is the character that covers most of the
    token; `read_1` to `read_4` are those whose centres it holds, in reading order.
    """

    shape: Labels
    colour: Labels
    direction: Labels
    cell: Labels
    background: Labels
    place: Labels
    row: Labels
    column: Labels
    under: Labels
    read_1: Labels
    read_2: Labels
    read_3: Labels
    read_4: Labels


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
    if scene.unseen:
        return unseen.paint(scene.unseen, scene.seed, *size)
    picture = Image.new("RGB", size, scene.rgb)
    if rng.random() < 0.15:
        picture = _gradient(size, scene.rgb, rng.uniform(4, 22), rng)
    scale_x, scale_y = size[0] / scene.width, size[1] / scene.height
    _paint_things(picture, scene, (scale_x, scale_y), rng)
    if scene.chart:
        _paint_chart(picture, scene.chart, (scale_x, scale_y), rng)
    for line in scene.lines:
        _write(picture, line, scale_x, scale_y)
    return picture


def _paint_things(picture: Image.Image, scene: Scene, scale: tuple[float, float], rng: np.random.Generator) -> None:
    canvas = ImageDraw.Draw(picture)
    bordered = rng.random() < 0.2
    shaded = rng.random() < 0.1
    for thing in scene.things:
        points = _points(thing, scene, *scale)
        if shaded:
            mask = Image.new("L", picture.size)
            ImageDraw.Draw(mask).polygon(points, fill=255)
            picture.paste(_gradient(picture.size, thing.rgb, rng.uniform(4, 20), rng), mask=mask)
        else:
            canvas.polygon(points, fill=thing.rgb)
        if bordered:
            width = max(1, round(thing.radius_px * scale[0] * rng.uniform(0.03, 0.1)))
            _stroke(canvas, points, _border(thing, scene, rng), width)


def _paint_chart(picture: Image.Image, chart: Chart, scale: tuple[float, float], rng: np.random.Generator) -> None:
    canvas = ImageDraw.Draw(picture)
    scale_x, scale_y = scale
    base, right, thin = chart.base * scale_y, picture.width * 0.985, max(1, round(scale_y))
    faint = int(rng.integers(150, 225))
    for y in chart.grid:
        canvas.line((picture.width * 0.01, y * scale_y, right, y * scale_y), fill=(faint,) * 3, width=thin)
    edge = rng.random() < 0.2
    for bar in chart.bars:
        corners = (round(bar.left * scale_x), round(bar.top * scale_y), round(bar.right * scale_x), round(base))
        outline = (0, 0, 0) if edge and chart.axis and max(chart.axis) < 100 else None
        canvas.rectangle(corners, fill=bar.rgb, outline=outline, width=thin)
    if chart.axis:
        thick = max(1, round(scale_y * rng.uniform(0.8, 2.0)))
        canvas.line((picture.width * 0.01, base, right, base), fill=chart.axis, width=thick)
        if rng.random() < 0.5:
            canvas.line((picture.width * 0.012, picture.height * 0.03, picture.width * 0.012, base), chart.axis, thick)


def _write(picture: Image.Image, line: Line, scale_x: float, scale_y: float) -> None:
    """Print one line. A picture of words is never stretched, so that both scales are nearly one."""
    font = font_of(line.font, max(4, round(em_px(line) * scale_y)))
    x, y = line.x * scale_x, line.y * scale_y
    baseline = line.cap_px * scale_y / 2
    canvas = ImageDraw.Draw(picture)
    if line.tilt == 0:
        canvas.text((x - font.getlength(line.text) / 2, y + baseline), line.text, line.rgb, font, anchor="ls")
        return
    side = int(font.getlength(line.text) + 4 * baseline)
    mask = Image.new("L", (side, side))
    start = (side - font.getlength(line.text)) / 2
    ImageDraw.Draw(mask).text((start, side / 2 + baseline), line.text, 255, font, anchor="ls")
    turned = mask.rotate(line.tilt, Image.Resampling.BICUBIC)
    picture.paste(line.rgb, (round(x - side / 2), round(y - side / 2)), turned)


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
    scale = float(rng.choice((1.0, 1.4, 2.0, 3.0), p=(0.36, 0.28, 0.26, 0.1))) * rng.uniform(0.9, 1.1)
    if scene.unseen:  # it has no outlines to keep, and costs by the pixel
        scale = rng.uniform(0.7, 1.2)
    stretch = 1.0 if scene.lines else rng.uniform(0.93, 1.07)
    large = (max(28, round(target[0] * scale * stretch)), max(28, round(target[1] * scale)))
    picture = _paint(scene, large, rng)
    if rng.random() < 0.4:  # somebody else scaled it before: antialiasing, or too small a source
        least = 0.85 if scene.lines else 0.5  # what was legible stays legible
        seen = max(least, rng.uniform(0.5, 1.0) * scale)
        middle = (max(28, round(target[0] * seen)), max(28, round(target[1] * seen)))
        kind = _FILTERS[rng.integers(4)] if seen > 1.5 and not scene.lines else _FILTERS[rng.integers(3)]
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
    shape[most == 0] = IGNORE if scene.unseen else NOTHING
    row, across = (part.ravel().astype(np.int8) for part in np.divmod(np.arange(len(grid)), scene.columns))
    place = ((row + 0.5) * 3 // scene.rows * 3 + (across + 0.5) * 3 // scene.columns).astype(np.int8)
    background = COLOURS.index(scene.background) if scene.background else IGNORE
    return TokenLabels(
        shape,
        column([COLOURS.index(t.colour) for t in things]),
        column([DIRECTIONS.index(t.direction) if t.direction else IGNORE for t in things]),
        column([t.cell for t in things]),
        np.full(len(grid), background, np.int8),
        place,
        row,
        across,
        *_characters(scene),
    )


def _characters(scene: Scene) -> list[Labels]:
    """The five character columns of `TokenLabels`: the one that covers a token, and the ones it holds."""
    shape = (scene.rows, scene.columns)
    under = np.full(shape, BLANK, np.int8)
    most = np.zeros(shape)
    held = np.full((READ_PER_TOKEN, *shape), BLANK, np.int8)
    if scene.unseen:
        return [np.full(under.size, IGNORE, np.int8)] * (1 + READ_PER_TOKEN)
    tokens_down, tokens_across = (np.arange(count) * TOKEN_PX for count in shape)
    for box in (box for line in scene.lines for box in boxes(line)):
        value = CHARACTERS.index(box.character)
        down = np.clip(np.minimum(tokens_down + TOKEN_PX, box.bottom) - np.maximum(tokens_down, box.top), 0, None)
        across = np.clip(np.minimum(tokens_across + TOKEN_PX, box.right) - np.maximum(tokens_across, box.left), 0, None)
        covered = np.outer(down, across)
        wins = (covered > most) & (covered > 0.15 * min((box.right - box.left) * (box.bottom - box.top), TOKEN_PX**2))
        under[wins], most[wins] = value, covered[wins]
        row, column = (
            int(min(max((low + high) / 2 // TOKEN_PX, 0), count - 1))
            for low, high, count in ((box.top, box.bottom, shape[0]), (box.left, box.right, shape[1]))
        )
        free = np.flatnonzero(held[:, row, column] == BLANK)
        if len(free):
            held[free[0], row, column] = value
    return [under.ravel(), *(slot.ravel() for slot in held)]
