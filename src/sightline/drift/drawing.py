"""Pictures and questions drawn by code, for those who have none at hand: the same on every machine.

No model was trained on them: the embedded model's training has a drawer of its own, which is not in the package. They
are made to tell engines apart, not to be hard: other sizes and ratios (so that each is resized differently), JPEG and
PNG, one picture or two, the text before or after.
"""

from __future__ import annotations

import math
from io import BytesIO
from random import Random

from PIL import Image, ImageDraw

from sightline.drift.questions import Picture, Question

COLOURS = {
    "black": (20, 20, 20), "white": (245, 245, 245), "grey": (128, 128, 128), "red": (215, 30, 35),
    "green": (40, 155, 60), "blue": (35, 75, 210), "yellow": (245, 215, 40), "orange": (245, 135, 25),
    "purple": (125, 45, 160), "pink": (250, 150, 190), "brown": (120, 75, 40), "cyan": (40, 205, 220),
}  # fmt: skip

SHAPES = ("circle", "square", "diamond", "triangle", "star", "ring")

_ASKED_OF_ONE = (
    "What colour is the {shape}?", "Where is the {shape}?", "Is there a {colour} {shape}?", "Which shape is {colour}?",
    "How many shapes are there?", "What colour is the background?", "Describe what you see.",
)  # fmt: skip
_ASKED_OF_TWO = ("Which picture shows the {shape}?", "What colour is the shape in the second picture?")


def drawn(count: int, seed: int = 0) -> list[Question]:
    """The first `count` questions: in every five, one about two pictures and one with its text before the picture."""
    return [_question(number, Random(f"{seed}-{number}")) for number in range(count)]


def _question(number: int, random: Random) -> Question:
    two = number % 5 == 3
    id_ = f"drawn-{number:04}"
    pictures, figures = [], []
    for index in range(2 if two else 1):
        background, shown = _figures(random, 1 if two else random.randint(1, 3))
        encoding = random.choice(("JPEG", "PNG"))
        content = _draw(random, background, shown, encoding)
        pictures.append(Picture(f"{id_}-{index}.{'jpg' if encoding == 'JPEG' else 'png'}", content))
        figures += shown
    shape, colour = (
        random.choice(figures)[0],
        random.choice(figures)[1],
    )  # not always of the same one: answers are "no" too
    text = random.choice(_ASKED_OF_TWO if two else _ASKED_OF_ONE).format(shape=shape, colour=colour)
    return Question(id_, tuple(pictures), text, text_first=number % 5 == 1)


def _figures(random: Random, count: int) -> tuple[str, list[tuple[str, str]]]:
    """The background's colour, and (shape, colour) of figures, no colour or shape twice."""
    background, *colours = random.sample(sorted(COLOURS), count + 1)
    return background, list(zip(random.sample(SHAPES, count), colours, strict=True))


def _draw(random: Random, background: str, figures: list[tuple[str, str]], encoding: str) -> bytes:
    """A picture file; each figure in a column of its own, so that none hides another."""
    width, height = random.randint(90, 420), random.randint(90, 420)
    picture = Image.new("RGB", (width, height), COLOURS[background])
    canvas = ImageDraw.Draw(picture)
    column = width / len(figures)
    for index, (shape, colour) in enumerate(figures):
        radius = min(column, height) * random.uniform(0.25, 0.45)
        x = random.uniform(index * column + radius, (index + 1) * column - radius)
        y = random.uniform(radius, height - radius)
        _figure(canvas, shape, colour, (x, y, radius))
    file = BytesIO()
    picture.save(file, encoding, quality=90)
    return file.getvalue()


def _figure(canvas: ImageDraw.ImageDraw, shape: str, colour: str, place: tuple[float, float, float]) -> None:
    x, y, radius = place
    fill = COLOURS[colour]
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        canvas.ellipse(box, fill=fill)
    elif shape == "ring":
        canvas.ellipse(box, outline=fill, width=max(2, round(radius * 0.35)))
    elif shape == "square":
        canvas.rectangle(box, fill=fill)
    else:
        corners, inner = {"diamond": (4, 1.0), "triangle": (3, 1.0), "star": (10, 0.42)}[shape]
        points = []
        for corner in range(corners):
            reach = radius * (inner if corner % 2 and shape == "star" else 1.0)
            turn = 2 * math.pi * corner / corners
            points.append((x + reach * math.sin(turn), y - reach * math.cos(turn)))
        canvas.polygon(points, fill=fill)
