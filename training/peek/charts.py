"""Bar charts: two to five bars, a letter or digit below and the value above each."""

from __future__ import annotations

import numpy as np

from training.peek.lettering import FONTS, width_of
from training.peek.world import COLOURS, Bar, Chart, Line, Scene, contrast, sample_ink, shade


def _values(rng: np.random.Generator, count: int) -> list[int]:
    """Integers from 1 to 99; one is clearly highest and one clearly lowest, as far as there is room."""
    for _ in range(50):
        values = rng.integers(1, 100, count).tolist()
        ranked = sorted(values)
        if ranked[-1] - ranked[-2] >= 6 and ranked[1] - ranked[0] >= 4 and ranked[-1] >= 12:
            break
    return [int(value) for value in values]


def _labels(rng: np.random.Generator, count: int) -> list[str]:
    draw = rng.random()
    if draw < 0.5:
        return list("ABCDE"[:count])
    if draw < 0.8:
        return list("12345"[:count])
    first = int(rng.integers(0, 26 - count))
    return [chr(ord("A") + first + i) for i in range(count)] if draw < 0.9 else _letters(rng, count)


def _letters(rng: np.random.Generator, count: int) -> list[str]:
    return [chr(ord("A") + i) for i in rng.choice(26, count, replace=False).tolist()]


def _cap(rng: np.random.Generator, font: int, column: float, height: float) -> float:
    """How high the print can be: two digits must fit a column, and the print leave room for the bars."""
    most = min(column * 0.95 / width_of("88", font, 1.0), height * 0.16)
    return float(min(most, rng.uniform(11, 20)))


def sample_chart(rng: np.random.Generator, rows: int, columns: int, count: int | None = None) -> Scene:
    """A vertical bar chart that fills most of its picture."""
    dark = rng.random() < 0.12
    paper = "black" if dark else ("white" if rng.random() < 0.75 else COLOURS[rng.integers(len(COLOURS))])
    rgb = shade(paper, rng)
    ink = shade("white" if contrast(rgb, (0, 0, 0)) < contrast(rgb, (255, 255, 255)) else "black", rng)
    count = count or int(rng.integers(2, 6))
    scene = Scene(rows, columns, paper, rgb)
    left, right = scene.width * rng.uniform(0.02, 0.14), scene.width * rng.uniform(0.9, 0.98)
    column = (right - left) / count
    font = int(rng.integers(len(FONTS)))
    cap = _cap(rng, font, column, scene.height)
    base = scene.height - cap * rng.uniform(1.7, 2.2) - scene.height * rng.uniform(0, 0.04)
    ceiling = cap * rng.uniform(1.8, 2.4) + scene.height * rng.uniform(0, 0.06)
    values, labels = _values(rng, count), _labels(rng, count)
    scale = max(max(values), float(rng.choice((max(values), 100.0), p=(0.6, 0.4))))
    one = sample_ink(rng, rgb)[0] if rng.random() < 0.5 else None
    share = rng.uniform(0.45, 0.85)
    bars: list[Bar] = []
    lines: list[Line] = []
    for number, (label, value) in enumerate(zip(labels, values, strict=True)):
        middle = left + (number + 0.5) * column
        top = base - max(1.5, (base - ceiling) * value / scale)
        colour, bar_rgb = sample_ink(rng, rgb, one)
        bars.append(Bar(label, value, colour, bar_rgb, middle - column * share / 2, middle + column * share / 2, top))
        lines.append(Line(label, font, cap, ink, middle, base + cap * 0.95))
        lines.append(Line(str(value), font, cap, ink, middle, top - cap * 0.85))
    axis = ink if rng.random() < 0.65 else None
    grid = tuple(np.linspace(ceiling, base, int(rng.integers(3, 7)))[:-1].tolist()) if rng.random() < 0.3 else ()
    return Scene(rows, columns, paper, rgb, lines=tuple(lines), chart=Chart(tuple(bars), base, axis, grid))
