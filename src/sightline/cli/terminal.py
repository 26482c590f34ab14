"""Pictures in a terminal: two pixels a character, upper half block over background, in 24-bit colour."""

from __future__ import annotations

from PIL import Image

RESET = "\x1b[0m"


def to_blocks(picture: Image.Image, columns: int = 28) -> list[str]:
    """Lines of text that show `picture` at most `columns` wide and about as high as it is wide."""
    picture = picture.convert("RGB")
    scale = min(columns / picture.width, columns / picture.height)
    width, height = max(1, round(picture.width * scale)), max(2, round(picture.height * scale) // 2 * 2)
    pixels = picture.resize((width, height), Image.Resampling.BOX).load()
    assert pixels is not None
    lines = []
    for y in range(0, height, 2):
        cells = []
        for x in range(width):
            (r1, g1, b1), (r2, g2, b2) = pixels[x, y], pixels[x, y + 1]  # type: ignore[misc]  # RGB: three channels
            cells.append(f"\x1b[38;2;{r1};{g1};{b1}m\x1b[48;2;{r2};{g2};{b2}m▀")
        lines.append("".join(cells) + RESET)
    return lines


def side_by_side(pictures: list[list[str]], gap: str = "  ") -> list[str]:
    """Joins the lines of several pictures; shorter ones are filled up below."""
    height = max(len(lines) for lines in pictures)
    widths = [lines[0].count("▀") for lines in pictures]
    padded = [lines + [" " * width] * (height - len(lines)) for lines, width in zip(pictures, widths, strict=True)]
    return [gap.join(row) for row in zip(*padded, strict=True)]
