"""Pixels to vision tokens: how large a picture a model can use, and what it costs. Pure arithmetic."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import msgspec

from sightline.errors import ImageTooSmall

if TYPE_CHECKING:  # the decoder processes start without numpy, which types imports
    from sightline.types import Detail, ImageRef

MAX_RATIO = 200
"""Longer side to shorter side; the limit of `smart_resize`."""

_LOW_DETAIL = 4
"""`detail: low` is a picture of at most a fourth of the model's pixels."""


class Served(NamedTuple):
    """What becomes of a picture: the size in pixels at which an engine receives it, and the tokens it costs there."""

    width: int
    height: int
    tokens: int


class CellBudget(msgspec.Struct, frozen=True, tag=True):
    """The rule of the Qwen2-VL family: a grid of square cells, one token a cell.

    Source: `smart_resize` in transformers' `models/qwen2_vl/image_processing_qwen2_vl.py`.
    """

    cell: int
    """Pixels on a side of what becomes one token: patch size x spatial merge size."""
    min_pixels: int
    max_pixels: int

    def serve(self, width: int, height: int) -> Served:
        """How a picture of that size in pixels is served: both sides multiples of `cell`, the area in
        `min_pixels..max_pixels` where whole cells allow, the shape kept as nearly as they allow.

        Equal to transformers' `smart_resize`, which rounds halves to even as Python does. A very long picture may
        exceed `max_pixels`, because neither side goes below one cell. Raises `ImageTooSmall` for a ratio of sides
        over 200.
        """
        if max(width, height) > MAX_RATIO * min(width, height):
            raise ImageTooSmall(
                f"this picture is {width} x {height} pixels, one side more than {MAX_RATIO} times the other. "
                "Crop it or cut it into pieces."
            )
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
        return Served(served_width, served_height, self.tokens(served_width, served_height))

    def tokens(self, width: int, height: int) -> int:
        """Vision tokens of a picture served at this size in pixels (what `serve` gave)."""
        return (width // self.cell) * (height // self.cell)

    def for_picture(self, ref: ImageRef) -> CellBudget:
        """This budget, narrowed to what the request asks of one picture."""
        return self.narrowed(ref.detail, max_pixels=ref.max_pixels, min_pixels=ref.min_pixels)

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
            high = max(low, high // _LOW_DETAIL)
        if max_pixels is not None:
            high = min(max(max_pixels, low), high)
        if min_pixels is not None:
            low = min(max(min_pixels, low), high)
        return msgspec.structs.replace(self, min_pixels=low, max_pixels=high)


VisionBudget: TypeAlias = CellBudget
"""The rule of some family of models, as data: it travels to the decoder processes and from the engines' processes."""
