"""Families that see a picture as square views of one size: LLaVA-1.5, Gemma 3, InternVL, SmolVLM and Idefics3.

Their processors resize whatever they are given. What is served is never enlarged; a larger picture is shrunk to the
size at which the processor's first resize has nothing left to do, wherever it makes of that size the same plan of views
and tokens as of the picture itself. LLaVA-NeXT and LLaVA-OneVision are in anyres.py.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import msgspec

from sightline.images.rule import LOW_DETAIL, MAX_RATIO, Filter, FixedTokens, Rule

if TYPE_CHECKING:
    from sightline.types import Detail


class CropBudget(FixedTokens, frozen=True):
    """The rule of LLaVA-1.5 (CLIP): the shorter side to `edge`, then the square in the middle.

    What lies outside that square is lost: of a 3:2 photograph a third, of a strip nearly all. Source:
    `get_resize_output_image_size` in transformers' `image_transforms.py`, `LlavaProcessor.replace_image_token`.
    """

    edge: int
    """Pixels; the crop is as large."""

    def fit(self, width: int, height: int) -> tuple[int, int]:
        short, long = min(width, height), max(width, height)
        if short <= self.edge:
            return width, height
        long = int(self.edge * long / short)
        return (self.edge, long) if width <= height else (long, self.edge)


class PanAndScanBudget(Rule, frozen=True):
    """The rule of Gemma 3, and with `max_crops` 0 of every model whose processor stretches a picture to a square.

    The whole picture is squeezed into `edge` x `edge`: nothing is cut off, its shape is lost. With pan and scan, a long
    picture is also cut into equal pieces along its longer side, each squeezed likewise, in addition to the whole.
    Served as the row of squares that the pieces become; the whole view is then resized from it a second time. A piece
    ends up to a pixel elsewhere than the processor's own, where the side does not divide.

    Tokens are those of the pictures; the words and line breaks that the processor writes around them are text.
    Source: `pan_and_scan` in transformers' `models/gemma3/image_processing_gemma3.py`, `Gemma3Processor`.
    """

    resample: ClassVar[Filter] = "bilinear"

    edge: int
    view_tokens: int
    max_crops: int = 0
    """`pan_and_scan_max_num_crops`; 0: no pan and scan."""
    min_crop: int = 256
    """Pixels on the shorter side of a piece, below which a picture is not cut."""
    min_ratio: float = 1.2
    """Longer side to shorter side below which a picture is not cut."""
    allowed_crops: int | None = None
    """Narrower than `max_crops`, or None."""

    def fit(self, width: int, height: int) -> tuple[int, int]:
        while (size := self._step(width, height)) != (width, height):  # twice at most
            width, height = size
        return width, height

    def _step(self, width: int, height: int) -> tuple[int, int]:
        crops = planned = self._crops(width, height)
        if self.allowed_crops is not None and crops > self.allowed_crops:
            planned = self.allowed_crops if self.allowed_crops > 1 else 0
        squares = max(1, planned)
        edge = min(self.edge, math.isqrt(width * height // squares))
        if planned == crops and edge < self.edge:
            return width, height
        served = (edge * squares, edge) if width >= height else (edge, edge * squares)
        return served if planned < crops or self._crops(*served) == crops else (width, height)

    def _crops(self, width: int, height: int) -> int:
        """Into how many pieces the processor cuts a picture of this size in pixels; 0: it does not."""
        long, short = max(width, height), min(width, height)
        if self.max_crops == 0 or long / short < self.min_ratio:
            return 0
        crops = min(math.floor(long / self.min_crop), math.floor(long / short + 0.5))
        crops = min(self.max_crops, max(2, crops))
        return crops if min(math.ceil(long / crops), short) >= self.min_crop else 0

    def tokens(self, width: int, height: int) -> int:
        return self.view_tokens * (1 + self._crops(width, height))

    @property
    def largest_tokens(self) -> int:
        crops = self.max_crops if self.allowed_crops is None else self.allowed_crops
        return self.view_tokens * (1 + (crops if crops > 1 else min(crops, self.max_crops)))

    def narrowed(
        self, detail: Detail = "auto", *, max_pixels: int | None = None, min_pixels: int | None = None
    ) -> PanAndScanBudget:
        """`low` is a fourth of the model's pieces, `max_pixels` as many pieces as fit in it, in either case the whole
        picture at least; `min_pixels` has no effect. Without pan and scan nothing has."""
        high = self.max_crops if self.allowed_crops is None else self.allowed_crops
        crops = high // LOW_DETAIL if detail == "low" else high
        if max_pixels is not None:
            crops = min(crops, max_pixels // self.edge**2)
        return self._limited(crops)

    def at_most(self, tokens: int) -> PanAndScanBudget | None:
        if self.largest_tokens <= tokens:
            return self
        return self._limited(tokens // self.view_tokens - 1) if tokens >= self.view_tokens else None

    def _limited(self, crops: int) -> PanAndScanBudget:
        high = self.max_crops if self.allowed_crops is None else self.allowed_crops
        crops = crops if crops > 1 else 0  # one piece would be the picture again
        return self if crops >= high else msgspec.structs.replace(self, allowed_crops=crops)


class TileBudget(Rule, frozen=True):
    """The rule of InternVL (its Hugging Face form): the grid of tiles whose shape is nearest, and a thumbnail.

    The picture is stretched to the grid: nothing is cut off, its shape is kept only as nearly as whole tiles allow.
    Served as the grid itself where that has fewer pixels than the picture; tiles are then exact, and the thumbnail is
    resized from it a second time. Source: `get_optimal_tiled_canvas` in transformers'
    `models/got_ocr2/image_processing_got_ocr2.py`, `InternVLProcessor.replace_image_token`.
    """

    edge: int
    """Pixels on a side of a tile."""
    tile_tokens: int
    min_tiles: int = 1
    max_tiles: int = 12
    """Without the thumbnail. 1: no tiles, the picture as one square."""
    allowed_tiles: int | None = None
    """Narrower than `max_tiles`, or None: what is served then has a grid's very shape, so that the processor, which
    knows of no such limit, chooses that grid."""

    def fit(self, width: int, height: int) -> tuple[int, int]:
        while (size := self._step(width, height)) != (width, height):
            width, height = size
        return width, height

    def _step(self, width: int, height: int) -> tuple[int, int]:
        columns, rows = self._grid(width, height, self.max_tiles)
        if self.allowed_tiles is None or columns * rows <= self.allowed_tiles:
            # Of the grids of one shape, the processor takes the largest that a picture fills to more than half. A grid
            # below the picture's own area fills itself, and not the next one to more than half: else that was chosen.
            canvas = columns * self.edge, rows * self.edge
            return canvas if canvas[0] * canvas[1] <= width * height else (width, height)
        columns, rows = self._grid(width, height, self.allowed_tiles)
        times = math.gcd(columns, rows)
        columns, rows = columns // times, rows // times
        area = min(width * height, (times * self.edge) ** 2 * columns * rows)
        if (times + 1) ** 2 * columns * rows <= self.max_tiles:  # not more than half of the next grid of this shape
            area = min(area, ((times + 1) * self.edge) ** 2 * columns * rows // 2)
        side = max(1, math.isqrt(area // (columns * rows)))
        return side * columns, side * rows

    def _grid(self, width: int, height: int, most: int) -> tuple[int, int]:
        """Columns and rows."""
        ratio, area = width / height, width * height
        best, nearest = (1, 1), math.inf
        for columns, rows in _grids(self.min_tiles, most):
            apart = abs(ratio - columns / rows)
            if apart < nearest or (apart == nearest and area > 0.5 * self.edge**2 * columns * rows):
                best, nearest = (columns, rows), apart
        return best

    def tokens(self, width: int, height: int) -> int:
        columns, rows = self._grid(width, height, self.max_tiles)
        return self._cost(columns * rows)

    def _cost(self, tiles: int) -> int:
        """Tokens with the thumbnail, of which one tile has none, and a token on either side."""
        return self.tile_tokens * (tiles + 1 if tiles > 1 else 1) + 2

    @property
    def largest_tokens(self) -> int:
        return self._cost(self.max_tiles if self.allowed_tiles is None else self.allowed_tiles)

    def narrowed(
        self, detail: Detail = "auto", *, max_pixels: int | None = None, min_pixels: int | None = None
    ) -> TileBudget:
        """`low` is a fourth of the model's tiles, `max_pixels` as many tiles as fit in it, in either case one at least;
        `min_pixels` has no effect: the processor enlarges a small picture to whole tiles by itself."""
        high = self.max_tiles if self.allowed_tiles is None else self.allowed_tiles
        tiles = high // LOW_DETAIL if detail == "low" else high
        if max_pixels is not None:
            tiles = min(tiles, max_pixels // self.edge**2)
        tiles = max(tiles, self.min_tiles)
        return self if tiles >= high else msgspec.structs.replace(self, allowed_tiles=tiles)

    def at_most(self, tokens: int) -> TileBudget | None:
        if self.largest_tokens <= tokens:
            return self
        views = (tokens - 2) // self.tile_tokens
        tiles = views - 1 if views > 2 else min(views, 1)
        return msgspec.structs.replace(self, allowed_tiles=tiles) if tiles >= self.min_tiles else None


@lru_cache(maxsize=64)
def _grids(least: int, most: int) -> tuple[tuple[int, int], ...]:
    """(columns, rows) with `least` to `most` tiles, fewest tiles first and then narrowest: the order decides ties."""
    sides = range(1, most + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if least <= columns * rows <= most]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


_MAX_SIDE = 4096
"""Idefics3's and SmolVLM's `MAX_IMAGE_SIZE`."""


class SplitBudget(Rule, frozen=True):
    """The rule of Idefics3 and SmolVLM: the longer side to `longest_edge`, stretched to whole tiles and cut.

    Nothing is cut off. A small picture is enlarged by the processor and costs as much as a large one: only the shape
    decides, so no request and no context can make a picture cheaper; the processor's own `size` can. Every tile has a
    token on either side, every row ends with a line break, and the whole picture follows after a blank line. Served at
    the size of the first resize; the processor's second, to whole tiles, remains, and a third for the whole picture.
    Source: transformers' `models/idefics3/image_processing_idefics3.py`, `Idefics3Processor.replace_image_token`.
    """

    resample: ClassVar[Filter] = "lanczos"

    longest_edge: int
    edge: int
    """Pixels on a side of a tile: `max_image_size`."""
    tile_tokens: int
    """`image_seq_len`."""
    splits: bool = True
    blank_line_tokens: int = 1
    """Tokens that two line breaks become; a small vocabulary may need 2."""

    def fit(self, width: int, height: int) -> tuple[int, int]:
        served = self._resized(width, height)
        fewer = served[0] * served[1] < width * height and max(served) <= MAX_RATIO * min(served)
        return served if fewer and self._grid(*served) == self._grid(width, height) else (width, height)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """The processor's first resize: the longer side, then the shorter one to an even number, then the cap."""
        ratio = width / height
        if width >= height:
            width = self.longest_edge
            height = int(width / ratio)
            height += height % 2
        else:
            height = self.longest_edge
            width = int(height * ratio)
            width += width % 2
        width, height = max(width, 1), max(height, 1)
        if max(width, height) > _MAX_SIDE:
            ratio = width / height
            width, height = (
                (_MAX_SIDE, int(_MAX_SIDE / ratio)) if width >= height else (int(_MAX_SIDE * ratio), _MAX_SIDE)
            )
        return max(width, 1), max(height, 1)

    def _grid(self, width: int, height: int) -> tuple[int, int]:
        """Columns and rows; (0, 0) where the picture is not cut."""
        width, height = self._resized(width, height)
        ratio = width / height
        if width >= height:
            columns = math.ceil(width / self.edge)
            rows = math.ceil(int(columns * self.edge / ratio) / self.edge)
        else:
            rows = math.ceil(height / self.edge)
            columns = math.ceil(int(rows * self.edge * ratio) / self.edge)
        return (columns, rows) if self.splits and max(columns, rows) > 1 else (0, 0)

    def tokens(self, width: int, height: int) -> int:
        columns, rows = self._grid(width, height)
        whole = self.tile_tokens + 3
        if rows == 0:
            return whole
        return rows * (columns * (self.tile_tokens + 2) + 1) + self.blank_line_tokens - 1 + whole

    @property
    def largest_tokens(self) -> int:
        """A square is the dearest shape; rounding may cost it a row one way or the other."""
        edge = self.longest_edge
        return max(self.tokens(edge, edge), self.tokens(edge, edge - 1), self.tokens(edge - 1, edge))

    def narrowed(
        self, detail: Detail = "auto", *, max_pixels: int | None = None, min_pixels: int | None = None
    ) -> SplitBudget:
        """This budget: nothing that can be asked has an effect."""
        return self

    def at_most(self, tokens: int) -> SplitBudget | None:
        return self if self.largest_tokens <= tokens else None
