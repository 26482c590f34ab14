"""Pixels to vision tokens: how large a picture a model can use, and what it costs. Pure arithmetic."""

from __future__ import annotations

from typing import TypeAlias

from sightline.images.anyres import AnyResBudget
from sightline.images.cells import CellBudget, PatchBudget
from sightline.images.published import ClaudePatches, GeminiLevels, GeminiTiles, OpenAIPatches, OpenAITiles
from sightline.images.rule import MAX_RATIO, Served
from sightline.images.tiles import CropBudget, PanAndScanBudget, SplitBudget, TileBudget

__all__ = [
    "MAX_RATIO",
    "AnyResBudget",
    "CellBudget",
    "CropBudget",
    "PanAndScanBudget",
    "PatchBudget",
    "Served",
    "SplitBudget",
    "TileBudget",
    "VisionBudget",
]

VisionBudget: TypeAlias = (
    CellBudget
    | PatchBudget
    | CropBudget
    | PanAndScanBudget
    | TileBudget
    | SplitBudget
    | AnyResBudget
    | OpenAITiles
    | OpenAIPatches
    | ClaudePatches
    | GeminiTiles
    | GeminiLevels
)
"""The rule of some family of models, as data: it travels to the decoder processes and from the engines' processes."""
