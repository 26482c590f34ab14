"""The budget of a checkpoint: its files as published ones have them, and what is said of files that are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sightline.images.budget import (
    AnyResBudget,
    CellBudget,
    CropBudget,
    PanAndScanBudget,
    PatchBudget,
    SplitBudget,
    TileBudget,
    VisionBudget,
)
from sightline.images.checkpoint import BudgetError, read_budget

Files = dict[str, dict[str, Any]]

CLIP = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 336},
    "crop_size": {"height": 336, "width": 336},
}
LLAVA = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
SMOL = {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}}
NEXT = AnyResBudget(336, 24, 576, ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)))


def checkpoint(path: Path, model_type: str, image: Any = None, processor: Any = None) -> Path:
    (path / "config.json").write_text(json.dumps({"model_type": model_type}))
    if image is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(image))
    if processor is not None:
        (path / "processor_config.json").write_text(json.dumps(processor))
    return path


@pytest.mark.parametrize(
    ("model_type", "image", "processor", "budget"),
    [
        (
            "qwen2_vl",
            {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "merge_size": 2},
            None,
            CellBudget(28, 3136, 12845056),
        ),
        (
            "qwen3_vl",
            {"size": {"longest_edge": 16777216, "shortest_edge": 65536}, "patch_size": 16, "merge_size": 2},
            None,
            CellBudget(32, 65536, 16777216),
        ),
        ("llava", CLIP, LLAVA, CropBudget(576, 336)),
        ("llava", {**CLIP, "size": 336, "crop_size": 336}, LLAVA, CropBudget(576, 336)),
        ("llava", CLIP, {**LLAVA, "vision_feature_select_strategy": "full"}, CropBudget(577, 336)),
        (
            "llava",
            {"image_processor_type": "PixtralImageProcessorFast", "size": {"longest_edge": 1024}},
            {"patch_size": 16},
            PatchBudget(16, 1024),
        ),
        ("llava_next", {**CLIP, "image_grid_pinpoints": PINPOINTS}, LLAVA, NEXT),
        (
            "llava_onevision",
            {"size": {"height": 384, "width": 384}, "image_grid_pinpoints": [[384, 384], [768, 384]]},
            {"num_image_tokens": 729, "vision_feature_select_strategy": "full"},
            AnyResBudget(384, 27, 729, ((384, 384), (768, 384)), 9),
        ),
        (
            "internvl",
            {"size": {"height": 448, "width": 448}, "crop_to_patches": False, "min_patches": 1, "max_patches": 12},
            {"image_seq_length": 256},
            TileBudget(448, 256, 1, 12),
        ),
        (
            "gemma3",
            {"size": {"height": 896, "width": 896}, "do_pan_and_scan": None, "pan_and_scan_max_num_crops": None},
            {"image_seq_length": 256},
            PanAndScanBudget(896, 256),
        ),
        ("smolvlm", SMOL, {"image_seq_len": 64}, SplitBudget(2048, 512, 64)),
        (
            "idefics3",
            {**SMOL, "size": {"longest_edge": 1456}, "max_image_size": {"longest_edge": 364}},
            {"image_seq_len": 169},
            SplitBudget(1456, 364, 169),
        ),
        (
            "mistral3",
            {"size": {"longest_edge": 1540}, "patch_size": {"height": 14, "width": 14}},
            {"patch_size": 14, "spatial_merge_size": 2},
            PatchBudget(28, 1540),
        ),
    ],
)
def test_published_checkpoints(
    tmp_path: Path, model_type: str, image: Any, processor: Any, budget: VisionBudget
) -> None:
    assert read_budget(checkpoint(tmp_path, model_type, image, processor)) == budget


def test_one_file_for_all_settings_as_transformers_writes_it_today(tmp_path: Path) -> None:
    processor = {"image_processor": SMOL, "image_seq_len": 64}
    ignored = {"size": {"longest_edge": 1}}
    assert read_budget(checkpoint(tmp_path, "smolvlm", ignored, processor)) == SplitBudget(2048, 512, 64)


def test_pan_and_scan_is_what_the_engine_asks_for(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, "gemma3", {"size": {"height": 896, "width": 896}, "do_pan_and_scan": True}, {})
    assert read_budget(path) == PanAndScanBudget(896, 256)
    assert read_budget(path, pan_and_scan=True) == PanAndScanBudget(896, 256, 4, 256, 1.2)


@pytest.mark.parametrize(("vocabulary", "tokens"), [('{"ĊĊ": 1}', 1), ('{"\\u010a\\u010A": 1}', 1), ('{"Ċ": 1}', 2)])
def test_a_blank_line_costs_what_the_vocabulary_has(tmp_path: Path, vocabulary: str, tokens: int) -> None:
    (tmp_path / "tokenizer.json").write_text(vocabulary, encoding="utf-8")
    budget = read_budget(checkpoint(tmp_path, "smolvlm", SMOL, {"image_seq_len": 64}))
    assert budget == SplitBudget(2048, 512, 64, blank_line_tokens=tokens)


@pytest.mark.parametrize(
    ("model_type", "image", "processor", "message"),
    [
        ("bert", {}, {}, r"config.json: model_type 'bert' .* known are gemma3, idefics3, internvl, llava"),
        ("llava", None, LLAVA, r"preprocessor_config.json: No such file"),
        ("llava", CLIP, None, r"processor_config.json: patch_size is missing"),
        ("llava", {**CLIP, "size": {"height": 336}}, LLAVA, r"preprocessor_config.json: size is .*shortest_edge"),
        ("llava", {**CLIP, "size": {"shortest_edge": "big"}}, LLAVA, r"size: shortest_edge is 'big'; .* whole number"),
        ("llava", {**CLIP, "crop_size": 224}, LLAVA, r"crop_size is 224; it must be as large as size, 336 x 336"),
        ("llava", {**CLIP, "do_center_crop": False}, LLAVA, r"do_center_crop is False; it must be true"),
        ("llava", {**CLIP, "image_processor_type": "ViT"}, LLAVA, r"image_processor_type is 'ViT'"),
        ("llava", CLIP, {**LLAVA, "vision_feature_select_strategy": "cls"}, r"is 'cls'; it must be default or full"),
        (
            "llava_next",
            {**CLIP, "image_grid_pinpoints": [[300, 336]]},
            LLAVA,
            r"image_grid_pinpoints .* multiple of 336",
        ),
        ("llava_next", {**CLIP, "image_grid_pinpoints": 3}, LLAVA, r"image_grid_pinpoints is 3"),
        ("smolvlm", {**SMOL, "max_image_size": {"longest_edge": 0}}, {}, r"max_image_size: longest_edge is 0"),
        (
            "llava_onevision",
            {"size": {"height": 384, "width": 384}},
            {"num_image_tokens": 729, "vision_aspect_ratio": "pad"},
            r"vision_aspect_ratio is 'pad'; it must be anyres_max_",
        ),
    ],
)
def test_what_is_wrong_is_named_by_file_and_key(
    tmp_path: Path, model_type: str, image: Any, processor: Any, message: str
) -> None:
    with pytest.raises(BudgetError, match=message):
        read_budget(checkpoint(tmp_path, model_type, image, processor))


def test_a_file_that_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("model_type: llava")
    with pytest.raises(BudgetError, match=r"config.json: this is not JSON"):
        read_budget(tmp_path)
