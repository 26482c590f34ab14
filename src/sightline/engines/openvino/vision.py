"""Pictures to embeddings: pixels to patches as the reference processor makes them, then the vision tower.

Source of the patch order and the rotary positions: transformers' `models/qwen2_vl/image_processing_qwen2_vl.py`
(`_preprocess`) and `modeling_qwen2_vl.py` (`rot_pos_emb`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sightline.engines.checkpoint import CheckpointError, read_json
from sightline.engines.openvino.checkpoint import VisionConfig
from sightline.errors import InvalidRequest
from sightline.images.budget import MAX_RATIO, CellBudget
from sightline.images.checkpoint import BudgetError, read_budget
from sightline.types import Image, Pixels

Embeddings = npt.NDArray[np.float32]
"""Of one picture, shape [tokens, hidden]."""

_ROTARY_THETA: Final = 10_000.0
"""The reference's constant: no configuration names it."""


@dataclass(frozen=True, slots=True)
class Preprocessor:
    """What `preprocessor_config.json` says of a picture's way into the model, resizing excepted: that is the edge's."""

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    budget: CellBudget
    levels: npt.NDArray[np.float32]
    """[3, 256]: what each of the 256 levels of each channel becomes: rescaled, then normalised."""

    def grid(self, image: Image) -> tuple[int, int]:
        """Rows and columns of the picture's tokens. Raises `InvalidRequest` if it is not at a size to be served."""
        cell = self.budget.cell
        rows, columns = image.served_height // cell, image.served_width // cell
        if image.pixels.shape != (rows * cell, columns * cell, 3) or rows == 0 or columns == 0:
            raise InvalidRequest(
                f"A picture must reach the engine with sides that are multiples of {cell} px; "
                f"this one has {image.served_width}x{image.served_height} px.",
                param="messages",
            )
        # The family's resizing never makes a side shorter than a cell, so a strip may exceed the budget.
        strip = min(rows, columns) == 1 and max(rows, columns) <= MAX_RATIO
        if rows * columns * cell**2 > self.budget.max_pixels and not strip:
            raise InvalidRequest(
                f"A picture of {image.served_width}x{image.served_height} px is larger than the "
                f"{self.budget.max_pixels} px that this model takes.",
                param="messages",
            )
        return rows, columns

    def to_patches(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """[patches, channels * frames * patch * patch], a still picture repeated over the frames.

        Patches that the merger will join stand next to each other.
        """
        patch, merge = self.patch_size, self.merge_size
        rows, columns = pixels.shape[0] // patch, pixels.shape[1] // patch
        values = np.stack([self.levels[channel][pixels[..., channel]] for channel in range(3)])
        blocks = values.reshape(3, rows // merge, merge, patch, columns // merge, merge, patch)
        ordered = blocks.transpose(1, 4, 2, 5, 0, 3, 6).reshape(rows * columns, 3, 1, patch * patch)
        return ordered.repeat(self.temporal_patch_size, axis=2).reshape(rows * columns, -1)


def read_preprocessor(model_dir: Path, vision: VisionConfig) -> Preprocessor:
    """Raises `CheckpointError` when `preprocessor_config.json` lacks what is needed or contradicts `config.json`."""
    config = read_json(model_dir / "preprocessor_config.json")
    try:
        patch = int(config.get("patch_size", vision.patch_size))
        merge = int(config.get("merge_size", vision.spatial_merge_size))
        frames = int(config.get("temporal_patch_size", vision.temporal_patch_size))
        levels = np.arange(256, dtype=np.float64)[None, :].repeat(3, axis=0)
        if config.get("do_rescale", True):
            levels *= config.get("rescale_factor", 1 / 255)
        if config.get("do_normalize", True):
            levels -= np.array(config["image_mean"], np.float64)[:, None]
            levels /= np.array(config["image_std"], np.float64)[:, None]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"preprocessor_config.json: {type(error).__name__}: {error}") from error
    if (patch, merge, frames) != (vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size):
        raise CheckpointError("preprocessor_config.json: its patches are not those of config.json")
    try:
        budget = read_budget(model_dir)
    except BudgetError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(budget, CellBudget) or budget.cell != patch * merge:
        raise CheckpointError("preprocessor_config.json: its pictures are not grids of config.json's cells")
    return Preprocessor(patch, frames, merge, budget, levels.astype(np.float32))


class VisionEncoder:
    """Pictures to embeddings, each at most once while it is remembered. Used by one thread."""

    def __init__(
        self, patches_model: Any, merger_model: Any, config: VisionConfig, preprocessor: Preprocessor, cache_bytes: int
    ) -> None:
        """The two models: compiled `openvino` models, see `export.py` for what goes in and out."""
        self._patches = patches_model.create_infer_request()
        self._merger = merger_model.create_infer_request()
        self._config = config
        self._preprocessor = preprocessor
        self._kept = EmbeddingCache(cache_bytes)

    @property
    def kept_bytes(self) -> int:
        """Of the embeddings that are remembered."""
        return self._kept.num_bytes

    def encode(self, image: Image, tenant: str) -> tuple[Embeddings, bool]:
        """The picture's embeddings, and whether they were at hand. Raises `RuntimeError` from OpenVINO."""
        key = (tenant, image.digest, image.served_height, image.served_width)
        if (known := self._kept.get(key)) is not None:
            return known, True
        embeddings = self._compute(image)
        self._kept.put(key, embeddings)
        return embeddings, False

    def _compute(self, image: Image) -> Embeddings:
        # A call for each picture: the merger's mask is dense, and several pictures in one call would square its size.
        rows, columns = (side * self._preprocessor.merge_size for side in self._preprocessor.grid(image))
        hidden = self._patches.infer([self._preprocessor.to_patches(image.pixels)], share_inputs=True)[0]
        inputs = {
            "hidden_states": hidden,
            "attention_mask": np.zeros((1, rows * columns, rows * columns), np.float32),
            "rotary_pos_emb": rotary_angles(rows, columns, self._preprocessor.merge_size, self._config.head_dim),
        }
        merged: Embeddings = np.array(self._merger.infer(inputs, share_inputs=True)[0], np.float32)
        return merged


@lru_cache(maxsize=64)
def rotary_angles(rows: int, columns: int, merge: int, head_dim: int) -> npt.NDArray[np.float32]:
    """[patches, head_dim / 2]: a quarter of the head turns with the row, a quarter with the column, in merge order."""
    by_row, by_column = np.indices((rows, columns)).reshape(2, rows // merge, merge, columns // merge, merge)
    frequencies = (1.0 / _ROTARY_THETA ** (np.arange(0, head_dim // 2, 2) / (head_dim // 2))).astype(np.float32)
    angles = [
        places.transpose(0, 2, 1, 3).reshape(-1, 1).astype(np.float32) * frequencies for places in (by_row, by_column)
    ]
    return np.concatenate(angles, axis=1)


class EmbeddingCache:
    """Embeddings by key, least recently used out first, bounded in bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[object, ...], Embeddings] = OrderedDict()
        self.num_bytes = 0

    def get(self, key: tuple[object, ...]) -> Embeddings | None:
        if key in self._entries:
            self._entries.move_to_end(key)
        return self._entries.get(key)

    def put(self, key: tuple[object, ...], embeddings: Embeddings) -> None:
        """One that is larger than the whole cache is not kept."""
        if key in self._entries or embeddings.nbytes > self._max_bytes:
            return
        self._entries[key] = embeddings
        self.num_bytes += embeddings.nbytes
        while self.num_bytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.num_bytes -= oldest.nbytes


def mrope_positions(num_tokens: int, pictures: Sequence[tuple[int, int, int]]) -> tuple[npt.NDArray[np.int64], int]:
    """Positions [3, tokens] (frame, row, column) of a prompt, and the position of the first generated token.

    `pictures`: for each, where its tokens begin, their rows and columns. Text counts up in all three; a picture stands
    at one frame and spreads over rows and columns; what follows continues from its largest position + 1.
    Source: `get_rope_index` in transformers' `modeling_qwen2_vl.py`.
    """
    positions = np.empty((3, num_tokens), np.int64)
    token = following = 0
    for begin, rows, columns in pictures:
        text = begin - token
        positions[:, token:begin] = following + np.arange(text)
        following += text
        places = np.indices((1, rows, columns)).reshape(3, -1)
        positions[:, begin : begin + rows * columns] = following + places
        following += max(rows, columns)
        token = begin + rows * columns
    positions[:, token:] = following + np.arange(num_tokens - token)
    return positions, following + num_tokens - token
