"""LLaVA-NeXT and LLaVA-OneVision: the best of a list of grids of tiles, padded, and the padding's tokens taken out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from sightline.images.rule import LOW_DETAIL, MAX_RATIO, Rule, shrunk

if TYPE_CHECKING:
    from sightline.types import Detail

Canvas = tuple[int, int]
"""Height and width in pixels, in that order, as checkpoints write `image_grid_pinpoints`."""

_TRIES = 256
"""Sizes tried, from the smallest, for one whose plan is that of the picture; measured, the first few hold it."""


class _Plan(NamedTuple):
    canvas: Canvas
    resized: tuple[int, int]
    """Width and height in pixels on the canvas, before padding."""
    features: int
    """Tokens of the tiles and of their line breaks."""


class AnyResBudget(Rule, frozen=True):
    """The rule of LLaVA-NeXT, and with `max_tiles` of LLaVA-OneVision.

    The picture is shrunk or enlarged into the canvas that wastes least of it, padded, and cut into tiles; the whole
    picture, squeezed into one tile, comes first. Nothing is cut off, except that tokens of the padding are left out by
    whole rows or columns. Every row of tokens ends with one for the line break. Above `max_tiles` tiles' worth of
    tokens by a tenth on either side, OneVision's model interpolates them down to that number.

    Served at the size that the processor would pad; where that size, being rounded, would have other padding or tokens
    than the picture itself, at the next larger size that has not. The tiles are then exact in the first case, and the
    whole picture's view is resized from it a second time.

    Sources, in transformers: `select_best_resolution` and `get_patch_output_size` in `image_processing_utils.py`,
    `_get_number_of_features` in `models/llava_next/` and `models/llava_onevision/`.
    """

    edge: int
    """Pixels on a side of a tile."""
    side: int
    """Tokens on a side of a tile."""
    base_tokens: int
    """Of the whole picture's view, with or without the encoder's CLS token as the checkpoint has it."""
    canvases: tuple[Canvas, ...]
    max_tiles: int | None = None
    """The 9 of OneVision's `anyres_max_9`."""
    max_pixels: int | None = None
    """Of the canvas, narrower than the largest, or None."""

    def fit(self, width: int, height: int) -> tuple[int, int]:
        if self.max_pixels is not None:
            width, height = shrunk(width, height, self._is_allowed)
        while (size := self._step(width, height)) != (width, height):
            width, height = size
        return width, height

    def _is_allowed(self, width: int, height: int) -> bool:
        rows, columns = self._plan(width, height).canvas
        return self.max_pixels is None or rows * columns <= self.max_pixels

    def _step(self, width: int, height: int) -> tuple[int, int]:
        plan = self._plan(width, height)
        for size in _sizes_from(plan.resized, width, height):
            if size[0] * size[1] >= width * height:
                break
            if max(size) <= MAX_RATIO * min(size) and self._plan(*size) == plan:
                return size
        return width, height

    def _plan(self, width: int, height: int) -> _Plan:
        canvas = _best_canvas(width, height, self.canvases)
        return _Plan(canvas, _resized(width, height, canvas), self._features(width, height, canvas))

    def _features(self, width: int, height: int, canvas: Canvas) -> int:
        rows, columns = (pixels // self.edge * self.side for pixels in canvas)
        if width / height > columns / rows:
            kept = int(round(height * (columns / width), 7))
            rows -= (rows - kept) // 2 * 2
        else:
            kept = int(round(width * (rows / height), 7))
            columns -= (columns - kept) // 2 * 2
        return _interpolated(rows, columns, self.side, self.max_tiles)

    def tokens(self, width: int, height: int) -> int:
        return self.base_tokens + self._plan(width, height).features

    @property
    def largest_tokens(self) -> int:
        """Over every canvas that may be chosen and every padding that it may have."""
        high = math.inf if self.max_pixels is None else self.max_pixels
        grids = {(h // self.edge, w // self.edge) for h, w in self.canvases if h * w <= high}
        return self.base_tokens + max(_most_features(*grid, self.side, self.max_tiles) for grid in grids)

    def narrowed(
        self, detail: Detail = "auto", *, max_pixels: int | None = None, min_pixels: int | None = None
    ) -> AnyResBudget:
        """`low` is a fourth of the largest canvas, `max_pixels` bounds the canvas, in either case not below the
        smallest one; a picture is shrunk until the processor chooses such a canvas. `min_pixels` has no effect: the
        processor enlarges a small picture by itself."""
        areas = [height * width for height, width in self.canvases]
        high = max(areas) if self.max_pixels is None else self.max_pixels
        narrow = high // LOW_DETAIL if detail == "low" else high
        if max_pixels is not None:
            narrow = min(narrow, max_pixels)
        narrow = max(narrow, min(areas))
        return self if narrow >= high else msgspec.structs.replace(self, max_pixels=narrow)

    def at_most(self, tokens: int) -> AnyResBudget | None:
        if self.largest_tokens <= tokens:
            return self
        for area in sorted({height * width for height, width in self.canvases}, reverse=True):
            fitted = self.narrowed(max_pixels=area)
            if fitted.largest_tokens <= tokens:
                return fitted
        return None


def _best_canvas(width: int, height: int, canvases: Sequence[Canvas]) -> Canvas:
    """The one that keeps most of the picture's pixels and, among those, wastes least; the first of equals."""
    best, most, least = canvases[0], 0, math.inf
    for canvas_height, canvas_width in canvases:
        scale = min(canvas_width / width, canvas_height / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        wasted = canvas_width * canvas_height - kept
        if kept > most or (kept == most and wasted < least):
            best, most, least = (canvas_height, canvas_width), kept, wasted
    return best


def _resized(width: int, height: int, canvas: Canvas) -> tuple[int, int]:
    canvas_height, canvas_width = canvas
    across, down = canvas_width / width, canvas_height / height
    if across < down:
        return canvas_width, min(math.ceil(height * across), canvas_height)
    return min(math.ceil(width * down), canvas_width), canvas_height


def _sizes_from(resized: tuple[int, int], width: int, height: int) -> Iterator[tuple[int, int]]:
    """Sizes (width, height) of nearly the picture's shape, from `resized` upwards."""
    yield resized
    for more in range(_TRIES):
        if width >= height:
            long = resized[0] + more
            yield long, max(1, long * height // width)
            yield long, -(-long * height // width)
        else:
            long = resized[1] + more
            yield max(1, long * width // height), long
            yield -(-long * width // height), long


def _interpolated(rows: int, columns: int, side: int, max_tiles: int | None) -> int:
    """Tokens of a grid of features, line breaks included, after OneVision's interpolation if there is one."""
    if max_tiles is not None:
        ratio = math.sqrt(rows * columns / (max_tiles * side**2))
        if ratio > 1.1:
            rows, columns = int(rows // ratio), int(columns // ratio)
    return rows * columns + rows


@lru_cache(maxsize=256)
def _most_features(tile_rows: int, tile_columns: int, side: int, max_tiles: int | None) -> int:
    rows, columns = tile_rows * side, tile_columns * side
    return max(
        *(_interpolated(kept, columns, side, max_tiles) for kept in range(rows, -1, -2)),
        *(_interpolated(rows, kept, side, max_tiles) for kept in range(columns, -1, -2)),
    )
