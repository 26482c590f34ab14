from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.engines.checkpoint import CheckpointError
from sightline.engines.openvino.checkpoint import VisionConfig
from sightline.engines.openvino.vision import EmbeddingCache, Preprocessor, read_preprocessor, rotary_angles
from sightline.images.budget import CellBudget

VISION = VisionConfig(
    depth=2, embed_dim=64, num_heads=1, patch_size=14, temporal_patch_size=2, spatial_merge_size=2, in_channels=3
)
PEEK: dict[str, Any] = {
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
}  # fmt: skip
SIZE = {"size": {"shortest_edge": 12544, "longest_edge": 38400}}


def read(directory: Path, config: dict[str, Any]) -> Preprocessor:
    (directory / "config.json").write_text(json.dumps({"model_type": "qwen2_vl"}))
    (directory / "preprocessor_config.json").write_text(json.dumps(config))
    return read_preprocessor(directory, VISION)


def test_patches_are_cut_in_the_order_of_the_merger(tmp_path: Path) -> None:
    """Against a plain loop: cell by cell, in a cell patch by patch; in a patch channel, frame, row, column."""
    pixels = np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    expected = []
    for top in range(0, 56, 28):
        for left in range(0, 84, 28):
            for y in (top, top + 14):
                for x in (left, left + 14):
                    patch = pixels[y : y + 14, x : x + 14].astype(np.float64) / 255
                    patch = (patch - PEEK["image_mean"]) / PEEK["image_std"]
                    channels = patch.transpose(2, 0, 1)
                    expected.append(np.stack([channels, channels], axis=1).reshape(-1))
    got = read(tmp_path, PEEK | SIZE).to_patches(pixels)
    assert got.shape == (24, 1176)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.array(expected), atol=1e-6)


def test_rotary_angles_follow_rows_and_columns_in_the_same_order() -> None:
    angles = rotary_angles(4, 6, 2, 64)
    assert angles.shape == (24, 32)
    frequencies = 10_000.0 ** (-np.arange(16) / 16)
    places = [
        (top + y, left + x) for top in (0, 2) for left in (0, 2, 4) for y in (0, 1) for x in (0, 1)
    ]  # fmt: skip
    for (row, column), angle in zip(places, angles, strict=True):
        np.testing.assert_allclose(angle, np.concatenate([row * frequencies, column * frequencies]), rtol=1e-5)


@pytest.mark.parametrize(
    "size",
    [
        SIZE,
        {"min_pixels": 12544, "max_pixels": 38400},
        {"size": {"shortest_edge": 1, "longest_edge": 2}, "min_pixels": 12544, "max_pixels": 38400},
    ],
)
def test_the_budget_is_read_from_old_and_new_keys_as_the_reference_does(tmp_path: Path, size: dict[str, Any]) -> None:
    assert read(tmp_path, PEEK | size).budget == CellBudget(28, 12544, 38400)


def test_what_is_missing_or_contradicts_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="image_mean"):
        read(tmp_path, {key: value for key, value in PEEK.items() if key != "image_mean"} | SIZE)
    with pytest.raises(CheckpointError, match=r"max_pixels is 'many'; it must be"):
        read(tmp_path, PEEK | SIZE | {"max_pixels": "many"})
    with pytest.raises(CheckpointError, match=r"not those of config\.json"):
        read(tmp_path, PEEK | SIZE | {"patch_size": 16})


def test_the_cache_forgets_what_was_used_longest_ago_and_stays_within_its_bytes() -> None:
    cache = EmbeddingCache(3 * 400)
    for name in "abc":
        cache.put((name,), np.zeros((10, 10), np.float32))
    assert cache.get(("a",)) is not None
    cache.put(("d",), np.zeros((10, 10), np.float32))
    assert [cache.get((name,)) is not None for name in "abcd"] == [True, False, True, True]
    assert cache.num_bytes == 1200
    cache.put(("huge",), np.zeros((1000, 1000), np.float32))
    assert cache.get(("huge",)) is None
    assert cache.num_bytes == 1200
