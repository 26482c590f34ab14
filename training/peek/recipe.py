"""What a training run can be told, and what it is told on a GPU and on a CPU."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from training.peek.studio import Size


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a run can be told.

    Rates are the peaks of their schedule; `groups` of `pictures` are one worker's share of a step, of which `fresh` are
    drawn anew. Workers are training processes with a thread each: on two cores more than twice as fast as two threads
    in one process. Producers are processes that only make batches; with none, workers make their own.
    """

    minutes: float
    seed: int = 2026
    device: str = "cpu"
    workers: int = 2
    producers: int = 0
    groups: int = 2
    pictures: int = 8
    fresh: float = 0.5
    pool: int = 48
    dense_share: float = 0.12
    muon_rate: float = 2e-3
    adam_rate: float = 1.5e-3
    weight_decay: float = 0.01
    dense_weight: float = 0.3
    warm_steps: int = 100
    hold_until: float = 0.45
    ema: float = 0.997
    exam_every_s: float = 240.0
    compile: bool = False

    @property
    def size(self) -> Size:
        return Size(self.groups, self.pictures, self.fresh, self.pool)


def recipe_for(minutes: float, device: str = "auto") -> Recipe:
    """The usual recipe on a device: "cpu", "cuda", or "auto" for the GPU if there is one.

    A GPU is fed by every core but one, with larger steps, and examined more often: it learns more in a minute.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    recipe = Recipe(minutes, device=device)
    if device == "cpu":
        return replace(recipe, workers=min(2, os.cpu_count() or 1))
    producers = max(1, (os.cpu_count() or 2) - 1)
    return replace(
        recipe, workers=1, producers=producers, groups=6, pictures=48, fresh=0.2, exam_every_s=75.0, ema=0.999
    )


class Span(NamedTuple):
    """What one call of the program does of a run: where to, whether from where it stopped, up to which minute."""

    out: Path
    resume: bool
    until_minute: float
