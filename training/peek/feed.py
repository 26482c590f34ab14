"""From whoever makes batches to the device that trains on them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from training.peek.batches import Batch, Rows
from training.peek.producers import Ahead, Inline, Producers
from training.peek.recipe import Recipe
from training.peek.tasks import Mixture


class OnDevice(NamedTuple):
    """A batch as tensors of the device. `labels` are by head."""

    pictures: list[Tensor]
    labels: dict[str, Tensor]
    rows: list[Rows]


def to_device(batch: Batch, device: torch.device) -> OnDevice:
    """Copy through pinned memory to a GPU; on a CPU, share the arrays."""

    def move(array: np.ndarray[Any, Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    return OnDevice(
        [move(pixels) for pixels in batch.pictures],
        {name: move(column) for name, column in batch.labels._asdict().items()},
        [Rows(*map(move, rows)) for rows in batch.rows],
    )


class Mover:
    """`to_device` on a stream of its own, done when it returns, so that it overlaps the step that runs meanwhile."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def __call__(self, batch: Batch) -> OnDevice:
        with torch.cuda.stream(self._stream):
            moved = to_device(batch, self._device)
        self._stream.synchronize()
        computing = torch.cuda.default_stream(self._device)
        for tensor in (*moved.pictures, *moved.labels.values(), *(t for rows in moved.rows for t in rows)):
            tensor.record_stream(computing)  # else its memory could be filled again while a step still reads it
        return moved


class Feed:
    """Where a worker's batches come from, and how they reach its device."""

    def __init__(self, recipe: Recipe, seed: tuple[int, ...], shared_factors: Any) -> None:
        self.device = torch.device(recipe.device)
        self._ahead: Ahead | None = None
        if recipe.producers:
            self._source: Producers | Inline = Producers(recipe.producers, seed, recipe.size)
            move = Mover(self.device) if self.device.type == "cuda" else _copied
            self._ahead = Ahead(self._source, move)
        else:
            self._source = Inline(seed, recipe.size, Mixture(np.frombuffer(shared_factors, np.float64)))
        self.mixture = self._source.mixture

    def next(self, *, joint: bool) -> OnDevice:
        if self._ahead:
            moved: OnDevice = self._ahead.next(joint=joint)
            return moved
        with self._source.batch(joint=joint) as batch:
            return to_device(batch, self.device)

    def close(self) -> None:
        if self._ahead:
            self._ahead.close()
        self._source.close()


def _copied(batch: Batch) -> OnDevice:
    """A batch that outlives its slot, on a CPU."""
    shared = to_device(batch, torch.device("cpu"))
    return OnDevice(
        [pixels.clone() for pixels in shared.pictures],
        {name: column.clone() for name, column in shared.labels.items()},
        [Rows(*(tensor.clone() for tensor in rows)) for rows in shared.rows],
    )
