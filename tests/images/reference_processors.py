"""transformers' own processors, a family each, on Pillow and with a tokenizer of a few words.

What is ours here: the tokenizer (bytes, the family's special tokens, and two line breaks as one token, as the real ones
have it); that nobody checks for torchvision's video processors, which pictures do not need; and that Pixtral's
processor takes its function for sizes from the module for Pillow: the other one, with the same, needs torchvision.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

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

Size = tuple[int, int]
"""Width and height in pixels."""

MODELS = "transformers.models"


@dataclass(frozen=True)
class Family:
    """A processor, our rule for it, and the size that the processor first resizes a picture to."""

    processor: Any
    budget: VisionBudget
    placeholder: str
    first_size: Callable[[Any, int, int], Size]
    model_type: str
    counted: str | None = None
    """The token that is counted; None: all that the placeholder becomes."""

    def tokens(self, sizes: Sequence[Size]) -> list[int]:
        """What the processor says that pictures of these sizes cost, without looking at any."""
        if hasattr(self.processor, "_get_num_multimodal_tokens") and self.model_type not in ("gemma3", "smolvlm"):
            heights_first = [(height, width) for width, height in sizes]
            return list(self.processor._get_num_multimodal_tokens(image_sizes=heights_first).num_image_tokens)
        return [self._counted_in(self._text(*size)) for size in sizes]

    def _text(self, width: int, height: int) -> str:
        """What replaces the placeholder, where the processor has no method that says so from a size alone."""
        image_processor = self.processor.image_processor
        if self.model_type == "gemma3":
            crops = 0
            if image_processor.do_pan_and_scan:
                picture = np.broadcast_to(np.uint8(0), (3, height, width))
                names = ("min_crop_size", "max_num_crops", "min_ratio_to_activate")
                settings = {f"pan_and_scan_{name}": getattr(image_processor, f"pan_and_scan_{name}") for name in names}
                crops = len(image_processor.pan_and_scan(picture, **settings))
            return str(self.processor.replace_image_token({"num_crops": [crops]}, 0))
        _, rows, columns = image_processor.get_number_of_image_patches(height, width, {})
        return str(self.processor.replace_image_token({"rows": [[rows]], "cols": [[columns]]}, 0))

    def _counted_in(self, text: str) -> int:
        return self._counted_ids(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _counted_ids(self, ids: Sequence[int]) -> int:
        if self.counted is None:
            return len(ids)
        return list(ids).count(self.processor.tokenizer.convert_tokens_to_ids(self.counted))

    def expanded(self, image: Image.Image) -> int:
        """Tokens in the `input_ids` that the processor really makes of a prompt with nothing but this picture."""
        inputs = self.processor(images=[image], text=[self.placeholder], add_special_tokens=False)
        return self._counted_ids(np.asarray(inputs["input_ids"][0]).tolist())

    def pixels(self, image: Image.Image) -> list[np.ndarray]:
        """What the model would see of a picture, as levels 0..255: views [channel, row, column], in order."""
        settings = {"do_rescale": False, "do_normalize": False, **getattr(self.processor, "images_kwargs", {})}
        settings.pop("return_tensors", None)
        if self.model_type == "mistral3":
            settings["patch_size"] = self.budget.cell
        if self.model_type == "gemma3":
            settings["do_pan_and_scan"] = self.processor.image_processor.do_pan_and_scan
        features = self.processor.image_processor(images=[image], return_tensors="np", **settings)
        values = features["pixel_values"]
        return [np.asarray(view) for view in values.reshape(-1, *values.shape[-3:])]


def families() -> dict[str, Family]:
    """By name; parameters are those of well-known checkpoints, and some that none has, to see every branch."""
    square = {"height": 336, "width": 336}
    edge = {"shortest_edge": 336}
    llava = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    pinpoints = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    onevision = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
    scan = {
        "do_pan_and_scan": True,
        "pan_and_scan_min_crop_size": 256,
        "pan_and_scan_max_num_crops": 4,
        "pan_and_scan_min_ratio_to_activate": 1.2,
    }
    gemma = {"size": {"height": 896, "width": 896}}
    next_canvases = tuple((height, width) for height, width in pinpoints)
    return {
        "qwen2-vl": _family(
            "qwen2_vl",
            {"size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}},
            {},
            CellBudget(28, 56 * 56, 28 * 28 * 1280),
            "<|image_pad|>",
            _cells,
        ),
        "qwen3-vl": _family(
            "qwen3_vl",
            {"size": {"shortest_edge": 65536, "longest_edge": 16777216}, "patch_size": 16},
            {},
            CellBudget(32, 65536, 16777216),
            "<|image_pad|>",
            _cells,
        ),
        "pixtral": _family("pixtral", {}, {}, PatchBudget(16, 1024), "[IMG]", _pixtral),
        "mistral3": _family(
            "mistral3",
            {"size": {"longest_edge": 1540}, "patch_size": 14},
            {"patch_size": 14, "spatial_merge_size": 2},
            PatchBudget(28, 1540),
            "[IMG]",
            _pixtral,
        ),
        "pixtral-odd": _family(
            "pixtral", {"size": {"longest_edge": 1000}}, {}, PatchBudget(16, 1000), "[IMG]", _pixtral
        ),
        "llava": _family(
            "llava", {"size": edge, "crop_size": square}, llava, CropBudget(576, 336), "<image>", _shortest_edge
        ),
        "llava-full": _family(
            "llava",
            {"size": edge, "crop_size": square},
            {**llava, "vision_feature_select_strategy": "full"},
            CropBudget(577, 336),
            "<image>",
            _shortest_edge,
        ),
        "llava-next": _family(
            "llava_next",
            {"size": edge, "crop_size": square, "image_grid_pinpoints": pinpoints},
            llava,
            AnyResBudget(336, 24, 576, next_canvases),
            "<image>",
            _anyres,
        ),
        "llava-onevision": _family(
            "llava_onevision",
            {"size": {"height": 384, "width": 384}, "image_grid_pinpoints": onevision},
            {"num_image_tokens": 729, "vision_feature_select_strategy": "full"},
            AnyResBudget(384, 27, 729, tuple((height, width) for height, width in onevision), 9),
            "<image>",
            _anyres,
        ),
        "internvl": _family(
            "internvl",
            {"size": {"height": 448, "width": 448}, "crop_to_patches": True},
            {},
            TileBudget(448, 256),
            "<IMG_CONTEXT>",
            _canvas,
        ),
        "internvl-40": _family(
            "internvl",
            {"size": {"height": 448, "width": 448}, "crop_to_patches": True, "min_patches": 2, "max_patches": 40},
            {},
            TileBudget(448, 256, 2, 40),
            "<IMG_CONTEXT>",
            _canvas,
        ),
        "gemma3": _family(
            "gemma3",
            {**gemma, "do_pan_and_scan": False},
            {},
            PanAndScanBudget(896, 256),
            "<start_of_image>",
            lambda *_: (896, 896),
            "<image_soft_token>",
        ),
        "gemma3-pan-and-scan": _family(
            "gemma3",
            {**gemma, **scan},
            {},
            PanAndScanBudget(896, 256, 4),
            "<start_of_image>",
            _crops,
            "<image_soft_token>",
        ),
        "idefics3": _family("idefics3", {}, {"image_seq_len": 169}, SplitBudget(1456, 364, 169), "<image>", _longest),
        "smolvlm": _family(
            "smolvlm",
            {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
            {"image_seq_len": 64},
            SplitBudget(2048, 512, 64),
            "<image>",
            _longest,
        ),
        "idefics3-one": _family(
            "idefics3",
            {"size": {"longest_edge": 364}},
            {"image_seq_len": 169},
            SplitBudget(364, 364, 169),
            "<image>",
            _longest,
        ),
    }


SPECIAL_TOKENS: dict[str, dict[str, str]] = {
    "qwen": {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    },
    "pixtral": {"image_token": "[IMG]", "break_token": "[IMG_BREAK]", "end_token": "[IMG_END]"},
    "llava": {"image_token": "<image>", "video_token": "<video>"},
    "internvl": {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    "gemma3": {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    },
    "idefics3": {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
        **{f"tile_{row}_{column}": f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)},
    },
}

CLASSES: dict[str, tuple[str, str, str, str, str]] = {
    "qwen2_vl": ("qwen2_vl", "Qwen2VLProcessor", "qwen2_vl", "Qwen2VLImageProcessorPil", "qwen"),
    "qwen3_vl": ("qwen3_vl", "Qwen3VLProcessor", "qwen2_vl", "Qwen2VLImageProcessorPil", "qwen"),
    "pixtral": ("pixtral", "PixtralProcessor", "pixtral", "PixtralImageProcessorPil", "pixtral"),
    "mistral3": ("pixtral", "PixtralProcessor", "pixtral", "PixtralImageProcessorPil", "pixtral"),
    "llava": ("llava", "LlavaProcessor", "clip", "CLIPImageProcessorPil", "llava"),
    "llava_next": ("llava_next", "LlavaNextProcessor", "llava_next", "LlavaNextImageProcessorPil", "llava"),
    "llava_onevision": (
        "llava_onevision",
        "LlavaOnevisionProcessor",
        "llava_onevision",
        "LlavaOnevisionImageProcessorPil",
        "llava",
    ),
    "internvl": ("internvl", "InternVLProcessor", "got_ocr2", "GotOcr2ImageProcessorPil", "internvl"),
    "gemma3": ("gemma3", "Gemma3Processor", "gemma3", "Gemma3ImageProcessorPil", "gemma3"),
    "idefics3": ("idefics3", "Idefics3Processor", "idefics3", "Idefics3ImageProcessorPil", "idefics3"),
    "smolvlm": ("smolvlm", "SmolVLMProcessor", "smolvlm", "SmolVLMImageProcessorPil", "idefics3"),
}
"""By model type: where its processor is and its class, the same of its image processor, and whose special tokens."""


def _family(
    model_type: str,
    image_settings: dict[str, Any],
    settings: dict[str, Any],
    budget: VisionBudget,
    placeholder: str,
    first_size: Callable[[Any, int, int], Size],
    counted: str | None = None,
) -> Family:
    package, name, image_package, image_name, tokens = CLASSES[model_type]
    image_module = importlib.import_module(f"{MODELS}.{image_package}.image_processing_pil_{image_package}")
    if package == "pixtral":
        sys.modules.setdefault(f"{MODELS}.pixtral.image_processing_pixtral", image_module)
    module = importlib.import_module(f"{MODELS}.{package}.processing_{package}")
    if model_type == "smolvlm":
        module.num2words = str  # type: ignore[attr-defined]  # spells the number of frames of a video
    image_processor = getattr(image_module, image_name)(**image_settings)
    base = getattr(module, name)
    unchecked = type(name, (base,), {"check_argument_for_proper_class": lambda *_: None, "__module__": base.__module__})
    parts = {"image_processor": image_processor, "tokenizer": _tokenizer(SPECIAL_TOKENS[tokens])}
    if model_type in ("qwen2_vl", "qwen3_vl", "llava_onevision", "internvl", "smolvlm"):
        parts["video_processor"] = None
    if model_type == "gemma3":
        unchecked.images_kwargs = {
            **base.images_kwargs,
            "do_pan_and_scan": image_processor.do_pan_and_scan,
        }
    return Family(unchecked(**parts, **settings), budget, placeholder, first_size, model_type, counted)


def _tokenizer(special: dict[str, str]) -> PreTrainedTokenizerFast:
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ"]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, [("Ċ", "Ċ")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special.values()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", extra_special_tokens=special)


def _cells(processor: Any, width: int, height: int) -> Size:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    settings = processor.image_processor
    low, high = settings.size["shortest_edge"], settings.size["longest_edge"]
    rows, columns = smart_resize(height, width, settings.patch_size * settings.merge_size, low, high)
    return columns, rows


def _pixtral(processor: Any, width: int, height: int) -> Size:
    from transformers.models.pixtral.image_processing_pil_pixtral import get_resize_output_image_size

    longest, cell = processor.image_processor.size["longest_edge"], processor.patch_size * processor.spatial_merge_size
    picture = np.broadcast_to(np.uint8(0), (height, width, 3))
    rows, columns = get_resize_output_image_size(picture, (longest, longest), (cell, cell))
    return columns, rows


def _shortest_edge(processor: Any, width: int, height: int) -> Size:
    from transformers.image_transforms import get_resize_output_image_size

    picture = np.broadcast_to(np.uint8(0), (height, width, 3))
    edge = processor.image_processor.size["shortest_edge"]
    resized = get_resize_output_image_size(picture, edge, default_to_square=False)
    return resized[1], resized[0]


def _anyres(processor: Any, width: int, height: int) -> Size:
    from transformers.image_processing_utils import get_patch_output_size, select_best_resolution

    best = select_best_resolution((height, width), processor.image_processor.image_grid_pinpoints)
    picture = np.broadcast_to(np.uint8(0), (height, width, 3))
    resized = get_patch_output_size(picture, best, None)
    return resized[1], resized[0]


def _canvas(processor: Any, width: int, height: int) -> Size:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    settings = processor.image_processor
    tile = (settings.size["height"], settings.size["width"])
    columns, rows = get_optimal_tiled_canvas((height, width), tile, settings.min_patches, settings.max_patches)
    return columns * tile[1], rows * tile[0]


def _crops(processor: Any, width: int, height: int) -> Size:
    picture = np.broadcast_to(np.uint8(0), (3, height, width))
    crops = processor.image_processor.pan_and_scan(picture, 256, 4, 1.2)
    pieces = max(1, len(crops))
    return (896 * pieces, 896) if width >= height else (896, 896 * pieces)


def _longest(processor: Any, width: int, height: int) -> Size:
    from transformers.models.idefics3.image_processing_pil_idefics3 import get_resize_output_image_size

    picture = np.broadcast_to(np.uint8(0), (3, height, width))
    resized = get_resize_output_image_size(picture, processor.image_processor.size["longest_edge"])
    return resized[1], resized[0]
