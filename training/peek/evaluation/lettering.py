"""Words from font outlines, filled by our own scanlines: the training draws its words with Pillow."""

from __future__ import annotations

import functools
import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from fontTools.pens.basePen import BasePen  # type: ignore[import-untyped]
from fontTools.ttLib import TTFont  # type: ignore[import-untyped]

_DIRECTORY = Path(__file__).parent / "fonts"
FONTS = tuple(sorted(file.stem for file in _DIRECTORY.glob("*.[to]tf")))
"""Names of the fonts: the stems of their files."""

_STEPS = 8
"""Straight pieces in place of one curve: at the largest letters the error is below a tenth of a pixel."""
_SCANLINES = 8
"""Scanlines in one row of pixels; along a scanline coverage is exact."""

Segments = npt.NDArray[np.float64]


class Coverage(NamedTuple):
    """How much of each pixel a word covers."""

    left: int
    """Of the picture's column where `values` begin."""
    top: int
    values: npt.NDArray[np.float64]
    """[h, w], 0..1."""


def extent(text: str, font: str, cap_height: float, spacing: float = 0.0) -> float:
    """Width of the text in pixels, from the first letter's origin to the last one's advance.

    `spacing` is added between letters, in cap heights.
    """
    face = _face(font)
    return cap_height * (sum(face.advance(c) for c in text) + spacing * (len(text) - 1))


def cover(
    text: str, font: str, cap_height: float, centre: tuple[float, float], *, spacing: float = 0.0, tilt: float = 0.0
) -> Coverage:
    """The text's pixels: capitals `cap_height` px high, its middle at `centre` (x, y), tilted clockwise by degrees.

    Raises `ValueError` for a character that the font has not got.
    """
    face, pen_x, pieces = _face(font), -extent(text, font, cap_height, spacing) / 2, []
    for character in text:
        segments = face.segments(character) * cap_height
        pieces.append(segments + np.array([pen_x, cap_height / 2]))
        pen_x += cap_height * (face.advance(character) + spacing)
    cos, sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    turned = np.concatenate(pieces) @ np.array([[cos, sin], [-sin, cos]]) + centre
    return _fill(turned)


def _fill(segments: Segments) -> Coverage:
    """Coverage of closed outlines by the nonzero rule; `segments` [n, 2 ends, 2 (x, y)] in pixels.

    Each crossing of a scanline adds its direction to all that lies right of it; the running sum is the winding number,
    and nonzero is inside. The pixel that holds a crossing gets its share.
    """
    left, top = np.floor(segments.min(axis=(0, 1))).astype(int) - 1
    right, bottom = np.ceil(segments.max(axis=(0, 1))).astype(int) + 1
    rows, columns = (bottom - top) * _SCANLINES, right - left + 1
    y = top + (np.arange(rows) + 0.5) / _SCANLINES
    (x0, y0), (x1, y1) = segments.transpose(1, 2, 0)
    low, high = np.searchsorted(y, np.minimum(y0, y1)), np.searchsorted(y, np.maximum(y0, y1))
    segment = np.repeat(np.arange(len(segments)), high - low)  # one entry for each crossing
    row = np.arange(len(segment)) - np.repeat(np.cumsum(high - low) - high, high - low)
    x = x0[segment] + (y[row] - y0[segment]) * ((x1 - x0)[segment] / (y1 - y0)[segment]) - left
    column = np.floor(x).astype(int)
    place, sign, beyond = row * columns + column, np.sign((y1 - y0)[segment]), x - column
    wind = np.bincount(place, sign * (1 - beyond), rows * columns)
    wind += np.bincount(place + 1, sign * beyond, rows * columns)
    inside = np.minimum(np.abs(np.cumsum(wind.reshape(rows, columns), axis=1)), 1.0)
    values = inside.reshape(-1, _SCANLINES, columns).mean(axis=1)
    return Coverage(int(left), int(top), values)


class _Face:
    """A font in units of its capitals' height, y downwards, the baseline at 0."""

    def __init__(self, file: Path) -> None:
        font: Any = TTFont(file)
        self._glyphs, self._names = font.getGlyphSet(), font.getBestCmap()
        pen = _Flattening(self._glyphs)
        self._glyphs[self._names[ord("H")]].draw(pen)
        self._unit = max(y for segment in pen.segments for _, y in segment)

    @functools.cache  # noqa: B019 - faces live as long as the program
    def segments(self, character: str) -> Segments:
        """[n, 2, 2]; empty for a space."""
        pen = _Flattening(self._glyphs)
        self._glyph(character).draw(pen)
        return np.asarray(pen.segments, float).reshape(-1, 2, 2) / self._unit * (1, -1)

    def advance(self, character: str) -> float:
        return float(self._glyph(character).width / self._unit)

    def _glyph(self, character: str) -> Any:
        if ord(character) not in self._names:
            raise ValueError(f"the evaluation's fonts have capitals, digits and '.-!' only, not {character!r}")
        return self._glyphs[self._names[ord(character)]]


@functools.cache
def _face(font: str) -> _Face:
    return _Face(next(_DIRECTORY.glob(f"{font}.[to]tf")))


class _Flattening(BasePen):  # type: ignore[misc]  # fontTools is untyped
    """Collects a glyph's outline as straight segments. fontTools calls the methods by these names."""

    def __init__(self, glyphs: Any) -> None:
        super().__init__(glyphs)
        self.segments: list[tuple[tuple[float, float], tuple[float, float]]] = []
        self._begin = (0.0, 0.0)

    def _moveTo(self, pt: tuple[float, float]) -> None:  # noqa: N802
        self._begin = pt

    def _lineTo(self, pt: tuple[float, float]) -> None:  # noqa: N802
        self.segments.append((self._getCurrentPoint(), pt))

    def _curveToOne(self, pt1: tuple[float, float], pt2: tuple[float, float], pt3: tuple[float, float]) -> None:  # noqa: N802
        """A cubic; `BasePen` raises quadratics to cubics."""
        ends = np.array([self._getCurrentPoint(), pt1, pt2, pt3], float)
        t = np.linspace(0, 1, _STEPS + 1)[:, None]
        points = (
            (1 - t) ** 3 * ends[0] + 3 * t * (1 - t) ** 2 * ends[1] + 3 * t * t * (1 - t) * ends[2] + t**3 * ends[3]
        )
        corners = [(float(x), float(y)) for x, y in points]
        self.segments += itertools.pairwise(corners)

    def _closePath(self) -> None:  # noqa: N802
        here = self._getCurrentPoint()
        if here != self._begin:
            self.segments.append((here, self._begin))
