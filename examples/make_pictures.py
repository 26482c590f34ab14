"""Draws the pictures of the examples: `python examples/make_pictures.py`. Needs Pillow only."""

from __future__ import annotations

import math
from pathlib import Path

from PIL import Image, ImageDraw

HERE = Path(__file__).parent / "pictures"
SCALE = 4  # drawn larger and scaled down, for smooth edges


def canvas(width: int, height: int, background: str) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", (width * SCALE, height * SCALE), background)
    return picture, ImageDraw.Draw(picture)


def save(picture: Image.Image, name: str) -> None:
    picture = picture.resize((picture.width // SCALE, picture.height // SCALE), Image.Resampling.LANCZOS)
    picture.save(HERE / name, **({"quality": 90} if name.endswith(".jpg") else {"optimize": True}))


def circle(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, colour: str) -> None:
    draw.ellipse([(x - r) * SCALE, (y - r) * SCALE, (x + r) * SCALE, (y + r) * SCALE], fill=colour)


def polygon(draw: ImageDraw.ImageDraw, points: list[tuple[float, float]], colour: str) -> None:
    draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=colour)


def star(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, colour: str) -> None:
    angles = [(-math.pi / 2 + i * math.pi / 5, r if i % 2 == 0 else 0.42 * r) for i in range(10)]
    polygon(draw, [(x + d * math.cos(a), y + d * math.sin(a)) for a, d in angles], colour)


def main() -> None:
    HERE.mkdir(exist_ok=True)
    picture, draw = canvas(480, 360, "white")
    circle(draw, 240, 180, 95, "#d62020")
    save(picture, "red-circle.png")

    picture, draw = canvas(400, 400, "#f3f3f3")
    polygon(draw, [(110, 110), (290, 110), (290, 290), (110, 290)], "#2050d0")
    save(picture, "blue-square.jpg")

    picture, draw = canvas(480, 360, "#202020")
    star(draw, 240, 185, 115, "#f4d020")
    save(picture, "yellow-star.png")

    picture, draw = canvas(600, 300, "white")
    for x in (110, 300, 490):
        polygon(draw, [(x, 80), (x + 70, 210), (x - 70, 210)], "#20a040")
    save(picture, "three-triangles.png")


if __name__ == "__main__":
    main()
