"""Pixels to vision tokens: how large a picture a model can use, and what it costs. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VisionBudget:
    """The rule of the Qwen2-VL family: a grid of square cells, one token a cell.

    Source: `smart_resize` in transformers' `models/qwen2_vl/image_processing_qwen2_vl.py`.
    """

    cell: int
    """Pixels on a side of what becomes one token: patch size x spatial merge size."""
    min_pixels: int
    max_pixels: int
