"""Pictures in a terminal."""

from __future__ import annotations

from PIL import Image

from sightline.cli.terminal import side_by_side, to_blocks


def test_colours_and_shape_survive() -> None:
    picture = Image.new("RGB", (100, 50), "red")
    picture.paste("blue", (0, 25, 100, 50))
    lines = to_blocks(picture, columns=20)
    assert len(lines) == 5
    assert all(line.count("▀") == 20 for line in lines)
    assert "255;0;0" in lines[0]
    assert "0;0;255" not in lines[0]
    assert "0;0;255" in lines[-1]


def test_pictures_of_different_heights_stand_beside_each_other() -> None:
    tall, wide = to_blocks(Image.new("RGB", (20, 40)), 10), to_blocks(Image.new("RGB", (40, 20)), 10)
    rows = side_by_side([tall, wide])
    assert len(rows) == len(tall)
    assert all(row.count("▀") in (5, 15) for row in rows)
