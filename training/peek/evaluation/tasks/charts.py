"""Questions about bar charts: two to five bars, a letter or digit below each, its value above it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

from training.peek.evaluation.cases import Asked
from training.peek.evaluation.drawing import Block, Rgb, Scene, Text
from training.peek.evaluation.lettering import FONTS, extent
from training.peek.evaluation.tasks.text import LEGIBLE, LEGIBLE_IN_FILE, some_ink
from training.peek.evaluation.world import (
    COLOURS,
    Ground,
    contrast,
    scene_on,
    served_scale,
    shade,
    some_ground,
    some_size,
)

_CLEARLY = 0.1
"""The tallest and the shortest bar differ from the next one by this share of the tallest, at least."""


@dataclass(frozen=True, slots=True)
class Chart:
    labels: tuple[str, ...]
    values: tuple[int, ...]
    """1..99, all different."""


def extreme(index: int, rng: Random) -> Asked:
    """The tallest or the shortest, any bar of two to five in turn."""
    count = index // 2 % 4 + 2
    chart = _some_chart(count, rng)
    if index % 2:
        phrasings = ("Which bar is the shortest?", "Which bar is shortest?", "Which bar is lowest?")
        found = chart.values.index(min(chart.values))
    else:
        phrasings = ("Which bar is tallest?", "Which bar is the highest?", "Which is the tallest bar?")
        found = chart.values.index(max(chart.values))
    return Asked(rng.choice(phrasings), chart.labels[found], (plot(chart, rng),))


def value(index: int, rng: Random) -> Asked:
    chart = _some_chart(index % 4 + 2, rng)
    asked = rng.randrange(len(chart.labels))
    phrasing = rng.choice(
        ["What value is printed above bar {label}?", "What is the value of bar {label}?",
         "Which number is above bar {label}?", "What number is printed above bar {label}?"]
    )  # fmt: skip
    return Asked(phrasing, str(chart.values[asked]), (plot(chart, rng),), (("label", chart.labels[asked]),))


def number_of_bars(index: int, rng: Random) -> Asked:
    chart = _some_chart(index % 4 + 2, rng)
    phrasing = rng.choice(["How many bars are there?", "How many bars does the chart have?", "Count the bars."])
    return Asked(phrasing, str(len(chart.labels)), (plot(chart, rng),))


def _some_chart(count: int, rng: Random) -> Chart:
    labels = rng.choice(("ABCDE", "12345"))[:count]
    while True:
        values = tuple(rng.sample(range(1, 100), count))
        low, *_ = ordered = sorted(values)
        if min(ordered[-1] - ordered[-2], ordered[1] - low) >= _CLEARLY * ordered[-1]:
            return Chart(tuple(labels), values)


def plot(chart: Chart, rng: Random, longest: int = 4000) -> Scene:
    """The chart, drawn in one of many styles, its letters legible to the model and to a person."""
    while True:
        size = some_size(rng, longest, 2.0)
        paper = rng.choice(("white", "white", "white", "grey", "black", "yellow", "pink", "cyan"))
        ground = some_ground(rng, paper, size)._replace(below=None)
        ink = some_ink(ground, rng)
        cap = max(LEGIBLE_IN_FILE, LEGIBLE * math.exp(rng.uniform(0.03, 0.4)) / served_scale(*size))
        bars = _colours(len(chart.labels), ground, rng)
        if ink and bars and (scene := _lay_out(chart, ground, rng, cap=cap, ink=ink, bars=bars)):
            return scene


def _colours(count: int, ground: Ground, rng: Random) -> list[Rgb] | None:
    """One shade for all bars or one for each; None where one is too like the ground."""
    one = shade(rng.choice(COLOURS), rng)
    bars = [one] * count if rng.random() < 0.5 else [shade(c, rng) for c in rng.sample(COLOURS, count)]
    return bars if all(contrast(rgb, ground.above) >= 40 for rgb in bars) else None


def _lay_out(chart: Chart, ground: Ground, rng: Random, *, cap: float, ink: Rgb, bars: list[Rgb]) -> Scene | None:
    """None where a value is wider than its bar's share of the picture, or bars would be mere stubs."""
    font, count = rng.choice(FONTS), len(chart.labels)
    left, right = ground.width * rng.uniform(0.04, 0.1), ground.width * rng.uniform(0.92, 0.97)
    bottom, top = ground.height - 2.2 * cap, 2.4 * cap
    share = (right - left) / count
    if max(extent(str(v), font, cap) for v in chart.values) > 0.88 * share or bottom - top < 4 * cap:
        return None
    unit, thick = (bottom - top) / max(chart.values), share * rng.uniform(0.5, 0.8) / 2
    middles = [left + share * (i + 0.5) for i in range(count)]
    line = max(1.0, cap / 12)
    faint = tuple(round(0.8 * p + 0.2 * i) for p, i in zip(ground.above, ink, strict=True))
    blocks = []
    if rng.random() < 0.4:  # a grid, behind the bars
        steps = rng.randint(3, 5)
        heights = [bottom - (bottom - top) * step / steps for step in range(1, steps + 1)]
        blocks += [Block(left, y, right, y + line, faint) for y in heights]  # type: ignore[arg-type]
    blocks += [
        Block(middle - thick, bottom - v * unit, middle + thick, bottom, rgb)
        for middle, v, rgb in zip(middles, chart.values, bars, strict=True)
    ]
    if rng.random() < 0.7:
        blocks.append(Block(left, bottom, right, bottom + line, ink))
    if rng.random() < 0.3:
        blocks.append(Block(left, top, left + line, bottom, ink))
    words = [*zip(chart.labels, [bottom + 1.1 * cap] * count, strict=True)]
    words += [(str(v), bottom - v * unit - cap) for v in chart.values]
    texts = tuple(
        Text(word, font, ink, round(middles[i % count], 2), round(y, 2), round(cap + 0.005, 2))
        for i, (word, y) in enumerate(words)
    )
    return scene_on(ground, rng, blocks=tuple(blocks), texts=texts)
