"""Families that see a picture as one grid of cells, as large as the picture: Qwen-VL, Pixtral. Nothing is cut off."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from sightline.images.rule import LOW_DETAIL, MAX_RATIO, Rule, shrunk

if TYPE_CHECKING:
    from sightline.types import Detail


class CellBudget(Rule, frozen=True):
    """The rule of the Qwen2-VL family: a grid of square cells, one token a cell.

    Source: `smart_resize` in transformers' `models/qwen2_vl/image_processing_qwen2_vl.py`. The processor's own resize
    leaves a served picture as it is.
    """

    cell: int
    """Pixels on a side of what becomes one token: patch size x spatial merge size."""
    min_pixels: int
    max_pixels: int
    max_tokens: int | None = None
    """What `at_most` promised, which `max_pixels` alone cannot: a strip may exceed it. None: nothing was promised."""

    def fit(self, width: int, height: int) -> tuple[int, int]:
        """Both sides multiples of `cell`, the area in `min_pixels..max_pixels` where whole cells allow, the shape kept
        as nearly as they allow.

        Equal to transformers' `smart_resize`, which rounds halves to even as Python does, but for the longest strips:
        rounding may leave one longer than the 200 to 1 that `smart_resize` itself refuses, and such a size would be
        refused by the model's own processor; its longer side is cut to 200 to 1. A very long picture may
        exceed `max_pixels`, because neither side goes below one cell, and a small one when it is enlarged to whole
        cells; where that would exceed `max_tokens`, the shape gives way.
        """
        served_width = round(width / self.cell) * self.cell
        served_height = round(height / self.cell) * self.cell
        if served_width * served_height > self.max_pixels:
            shrink = math.sqrt((height * width) / self.max_pixels)
            served_width = max(self.cell, math.floor(width / shrink / self.cell) * self.cell)
            served_height = max(self.cell, math.floor(height / shrink / self.cell) * self.cell)
        elif served_width * served_height < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            served_width = math.ceil(width * grow / self.cell) * self.cell
            served_height = math.ceil(height * grow / self.cell) * self.cell
        longest = MAX_RATIO * min(served_width, served_height)
        served_width, served_height = min(served_width, longest), min(served_height, longest)
        if self.max_tokens is None or self.tokens(served_width, served_height) <= self.max_tokens:
            return served_width, served_height
        ratio = max(width, height) / min(width, height)
        grids = self._grids(ratio, self.max_tokens)
        long, short = min(grids, key=lambda grid: abs(math.log(grid[0] / grid[1] / ratio)))
        columns, rows = (long, short) if width >= height else (short, long)
        return columns * self.cell, rows * self.cell

    def _grids(self, ratio: float, max_tokens: int) -> list[tuple[int, int]]:
        """Grids (longer side, shorter side) in cells whose area is allowed; for each shorter side the nearest one."""
        least = math.ceil(self.min_pixels / self.cell**2)
        grids = []
        for short in range(1, math.isqrt(max_tokens) + 1):
            most = min(max_tokens // short, MAX_RATIO * short)
            long = min(most, max(math.ceil(least / short), round(short * ratio)))
            if long * short >= least:
                grids.append((long, short))
        return grids

    def tokens(self, width: int, height: int) -> int:
        return (width // self.cell) * (height // self.cell)

    @property
    def largest_tokens(self) -> int:
        """No picture costs more, the longest strips included.

        With M = `max_pixels` in cells, a shrunk grid a x b has a * b <= M, or one row and a <= sqrt(200 M). With
        m = `min_pixels` in cells, a picture enlarged to a x b = m cells is rounded up to whole ones: to r rows, when
        b is in (r - 1, r], and at most ceil(m / (r - 1)) columns, and never more than ceil(sqrt(200 m)).
        """
        area = self.cell**2
        largest = max(self.max_pixels // area, math.isqrt(MAX_RATIO * self.max_pixels // area))
        smallest = self.min_pixels / area
        longest = math.ceil(math.sqrt(MAX_RATIO * smallest))
        for rows in range(1, math.ceil(math.sqrt(smallest)) + 1):
            columns = longest if rows == 1 else min(longest, math.ceil(smallest / (rows - 1)))
            largest = max(largest, rows * columns)
        return largest if self.max_tokens is None else min(largest, self.max_tokens)

    def narrowed(
        self, detail: Detail = "auto", *, max_pixels: int | None = None, min_pixels: int | None = None
    ) -> CellBudget:
        """This budget, narrowed to what a request, a model's configuration or an operator asks; never wider.

        `detail` comes first: `low` is a fourth of `max_pixels`, but not less than `min_pixels`. `auto`, `high` and
        `original` are the model's whole range, inside which a picture keeps its own size to the nearest cell. Then
        `max_pixels` and `min_pixels` narrow further; each is clamped into the range, and where they contradict each
        other `max_pixels` wins.
        """
        low, high = self.min_pixels, self.max_pixels
        if detail == "low":
            high = max(low, high // LOW_DETAIL)
        if max_pixels is not None:
            high = min(max(max_pixels, low), high)
        if min_pixels is not None:
            low = min(max(min_pixels, low), high)
        return msgspec.structs.replace(self, min_pixels=low, max_pixels=high)

    def at_most(self, tokens: int) -> CellBudget | None:
        """This budget, narrowed so that no picture costs more than `tokens`; None if `min_pixels` already do."""
        if self.largest_tokens <= tokens:
            return self
        high = min(self.max_pixels, tokens * self.cell**2)
        if high < max(self.min_pixels, self.cell**2) or not self._grids(1.0, tokens):
            return None
        return msgspec.structs.replace(self, max_pixels=high, max_tokens=tokens)


class PatchBudget(Rule, frozen=True):
    """The rule of Pixtral and Mistral 3: a grid of cells, a token that breaks each row, and an end instead of the last.

    Source: `get_resize_output_image_size` and `PixtralProcessor.replace_image_token` in transformers'
    `models/pixtral/`. The picture is shrunk into a square of `longest_edge`, then both sides are stretched up to whole
    cells, so its shape is kept to a cell. The processor's own resize leaves a served picture as it is. A strip so long
    that the processor would give it no row at all is served as one row of cells.
    """

    cell: int
    """Pixels on a side of what becomes one token: patch size x spatial merge size."""
    longest_edge: int
    max_pixels: int | None = None
    """Narrower than `longest_edge` squared, or None. One row or column of cells may exceed it."""
    max_tokens: int | None = None

    def fit(self, width: int, height: int) -> tuple[int, int]:
        shrink = max(width, height) / self.longest_edge
        if shrink > 1:
            width, height = max(1, math.floor(width / shrink)), max(1, math.floor(height / shrink))
        return self._whole(*shrunk(width, height, lambda *size: self._is_within(*self._whole(*size))))

    def _whole(self, width: int, height: int) -> tuple[int, int]:
        return -(-width // self.cell) * self.cell, -(-height // self.cell) * self.cell

    def _is_within(self, width: int, height: int) -> bool:
        if self.max_tokens is not None and self.tokens(width, height) > self.max_tokens:
            return False
        return self.max_pixels is None or width * height <= self.max_pixels or min(width, height) == self.cell

    def tokens(self, width: int, height: int) -> int:
        return (width // self.cell + 1) * (height // self.cell)

    @property
    def largest_tokens(self) -> int:
        """No picture costs more: with n cells on the longest edge and at most m in all, r rows have at most
        min(n, m / r) columns, and at least one."""
        edge = -(-self.longest_edge // self.cell)
        area = edge**2 if self.max_pixels is None else self.max_pixels // self.cell**2
        largest = max((max(1, min(edge, area // rows)) + 1) * rows for rows in range(1, edge + 1))
        return largest if self.max_tokens is None else min(largest, self.max_tokens)

    def narrowed(
        self, detail: Detail = "auto", *, max_pixels: int | None = None, min_pixels: int | None = None
    ) -> PatchBudget:
        """`low` is a fourth of the model's pixels, `max_pixels` bounds them; `min_pixels` has no effect, because the
        rule never enlarges a picture by more than a cell."""
        high = self.longest_edge**2 if self.max_pixels is None else self.max_pixels
        narrow = high // LOW_DETAIL if detail == "low" else high
        if max_pixels is not None:
            narrow = min(narrow, max_pixels)
        narrow = max(narrow, self.cell**2)
        return self if narrow >= high else msgspec.structs.replace(self, max_pixels=narrow)

    def at_most(self, tokens: int) -> PatchBudget | None:
        """This budget, narrowed so that no picture costs more than `tokens`; None under 2, a cell and its end."""
        if self.largest_tokens <= tokens:
            return self
        return msgspec.structs.replace(self, max_tokens=tokens) if tokens >= 2 else None
