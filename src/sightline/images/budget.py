"""Pixels to vision tokens: how large a picture a model can use, and what it costs. Pure arithmetic."""

from __future__ import annotations

from typing import TypeAlias

from sightline.images.cells import CellBudget
from sightline.images.rule import MAX_RATIO, Served

__all__ = ["MAX_RATIO", "CellBudget", "Served", "VisionBudget"]

VisionBudget: TypeAlias = CellBudget
"""The rule of some family of models, as data: it travels to the decoder processes and from the engines' processes."""
