"""The budget of a checkpoint, from the files that its processor is made of.

Kept out of budget.py because decoder processes need the rules, never the reading of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec

from sightline.images.anyres import AnyResBudget
from sightline.images.budget import VisionBudget
from sightline.images.cells import CellBudget, PatchBudget
from sightline.images.tiles import CropBudget, PanAndScanBudget, SplitBudget, TileBudget


class BudgetError(ValueError):
    """A checkpoint does not say how it sees pictures. The message names the file, the key and what is wrong."""


def read_budget(model_dir: Path, *, pan_and_scan: bool = False) -> VisionBudget:
    """The rule by which transformers 5.23 prepares pictures for the checkpoint in this directory.

    Reads `config.json`, `processor_config.json` and, where that does not hold the image processor's settings as today's
    files do, `preprocessor_config.json`; a setting that a file leaves out is the processor class's own default.
    `pan_and_scan` is for Gemma 3: transformers leaves it off whatever the files say, unless the call asks for it, so
    say here what the engine asks. Raises `BudgetError`.
    """
    config = _read(model_dir / "config.json")
    model_type = config.text("model_type")
    if (read := _FAMILIES.get(model_type)) is None:
        raise BudgetError(
            f"config.json: model_type {model_type!r} is not a family whose pictures can be counted; "
            f"known are {', '.join(sorted(_FAMILIES))}."
        )
    path = model_dir / "processor_config.json"
    processor = _read(path) if path.exists() else _File(path.name, {})
    image = processor.section("image_processor") or _read(model_dir / "preprocessor_config.json")
    return read(_Checkpoint(model_dir, config, processor, image, pan_and_scan))


class _File(NamedTuple):
    name: str
    values: Mapping[str, Any]

    def section(self, key: str) -> _File | None:
        value = self.values.get(key)
        return _File(f"{self.name}: {key}", value) if isinstance(value, dict) else None

    def text(self, key: str, default: str | None = None) -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def number(self, key: str, default: int | None = None) -> int:
        """A whole number above 0; null and a missing key are the default."""
        value = self.values.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.wrong(key, "a whole number above 0")
        return value

    def length(self, key: str, *names: str, default: int | None = None) -> int:
        """A side in pixels: `{"size": {"shortest_edge": 336}}`, in older files `{"size": 336}`."""
        value = self.values.get(key)
        if isinstance(value, int):
            return self.number(key)
        if isinstance(value, dict):
            lengths = {value[name] for name in names if value.get(name) is not None}
            if len(lengths) == 1:
                return _File(f"{self.name}: {key}", {names[0]: lengths.pop()}).number(names[0])
        if value is None and default is not None:
            return default
        raise self.wrong(key, f"an object with one length for {' and '.join(names)}")

    def wrong(self, key: str, wanted: str) -> BudgetError:
        found = f"is {self.values[key]!r}" if key in self.values else "is missing"
        return BudgetError(f"{self.name}: {key} {found}; it must be {wanted}.")


class _Checkpoint(NamedTuple):
    path: Path
    config: _File
    processor: _File
    image: _File
    pan_and_scan: bool


def _read(path: Path) -> _File:
    try:
        values = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise BudgetError(f"{path.name}: {error.strerror}; a checkpoint that sees pictures has this file.") from error
    except msgspec.DecodeError as error:
        raise BudgetError(f"{path.name}: this is not JSON: {error}.") from error
    if not isinstance(values, dict):
        raise BudgetError(f"{path.name}: this is not a JSON object.")
    return _File(path.name, values)


def _qwen(found: _Checkpoint) -> VisionBudget:
    image = found.image
    size = image.section("size") or _File(f"{image.name}: size", {})
    # The names of old win where both stand.
    least = image.number("min_pixels") if image.values.get("min_pixels") else size.number("shortest_edge", 56 * 56)
    most = image.number("max_pixels") if image.values.get("max_pixels") else size.number("longest_edge", 28 * 28 * 1280)
    return CellBudget(image.number("patch_size", 14) * image.number("merge_size", 2), least, most)


def _llava(found: _Checkpoint) -> VisionBudget:
    kind = found.image.text("image_processor_type", "LlavaImageProcessor").removesuffix("Fast")
    if kind == "PixtralImageProcessor":  # Pixtral's own checkpoint calls itself llava
        return _pixtral(found)
    if kind not in ("CLIPImageProcessor", "CLIPFeatureExtractor", "LlavaImageProcessor"):
        raise found.image.wrong("image_processor_type", "CLIPImageProcessor, LlavaImageProcessor or Pixtral's")
    for key, wanted in (("do_resize", True), ("do_center_crop", True)):
        if found.image.values.get(key, True) is not wanted:
            raise found.image.wrong(key, "true")
    if kind == "LlavaImageProcessor" and found.image.values.get("do_pad"):
        raise found.image.wrong("do_pad", "false: padding to a square before resizing is not a rule we have")
    edge = found.image.length("size", "shortest_edge", default=224)
    _same_crop(found.image, edge)
    side = edge // found.processor.number("patch_size")
    return CropBudget(side**2 + _added_tokens(found), edge)


def _llava_next(found: _Checkpoint) -> VisionBudget:
    edge = found.image.length("size", "shortest_edge", default=224)
    _same_crop(found.image, edge)
    side = edge // found.processor.number("patch_size")
    default = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    return AnyResBudget(edge, side, side**2 + _added_tokens(found), _pinpoints(found.image, edge, default))


def _llava_onevision(found: _Checkpoint) -> VisionBudget:
    edge = found.image.length("size", "height", "width", default=384)
    tokens = found.processor.number("num_image_tokens")
    ratio = found.processor.text("vision_aspect_ratio", "anyres_max_9")
    tiles = ratio.removeprefix("anyres_max_")
    if not tiles.isdecimal() or int(tiles) < 1:
        raise found.processor.wrong("vision_aspect_ratio", "anyres_max_ and a number of tiles")
    default = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
    base = tokens - 1 if _drops_class_token(found) else tokens
    return AnyResBudget(edge, math.isqrt(tokens), base, _pinpoints(found.image, edge, default), int(tiles))


def _internvl(found: _Checkpoint) -> VisionBudget:
    """Cropped to patches whatever the image processor's file says: `InternVLProcessor` asks for it in every call."""
    image = found.image
    edge = image.length("size", "height", "width", default=384)
    tokens = found.processor.number("image_seq_length", 256)
    return TileBudget(edge, tokens, image.number("min_patches", 1), image.number("max_patches", 12))


def _gemma3(found: _Checkpoint) -> VisionBudget:
    image = found.image
    edge = image.length("size", "height", "width", default=224)
    tokens = found.processor.number("image_seq_length", 256)
    if not found.pan_and_scan:
        return PanAndScanBudget(edge, tokens)
    ratio = image.values.get("pan_and_scan_min_ratio_to_activate") or 1.2
    if not isinstance(ratio, int | float):
        raise image.wrong("pan_and_scan_min_ratio_to_activate", "a number")
    most = image.number("pan_and_scan_max_num_crops", 4)
    return PanAndScanBudget(edge, tokens, most, image.number("pan_and_scan_min_crop_size", 256), float(ratio))


def _idefics3(found: _Checkpoint) -> VisionBudget:
    image = found.image
    splits = image.values.get("do_image_splitting")
    return SplitBudget(
        longest_edge=image.length("size", "longest_edge", default=4 * 364),
        edge=image.length("max_image_size", "longest_edge", default=364),
        tile_tokens=found.processor.number("image_seq_len", 169),
        splits=True if splits is None else bool(splits),
        blank_line_tokens=_blank_line_tokens(found.path / "tokenizer.json"),
    )


def _pixtral(found: _Checkpoint) -> VisionBudget:
    cell = found.processor.number("patch_size", 16) * found.processor.number("spatial_merge_size", 1)
    return PatchBudget(cell, found.image.length("size", "longest_edge", default=1024))


def _same_crop(image: _File, edge: int) -> None:
    if image.length("crop_size", "height", "width", default=224) != edge:
        raise image.wrong("crop_size", f"as large as size, {edge} x {edge}")


def _added_tokens(found: _Checkpoint) -> int:
    """What the encoder's CLS token adds to a view's patches: the processor counts it in, then the strategy drops it."""
    extra = found.processor.values.get("num_additional_image_tokens") or 0
    if isinstance(extra, bool) or not isinstance(extra, int) or extra < 0:
        raise found.processor.wrong("num_additional_image_tokens", "a whole number")
    return extra - _drops_class_token(found)


def _drops_class_token(found: _Checkpoint) -> bool:
    strategy = found.processor.text("vision_feature_select_strategy")
    if strategy not in ("default", "full"):
        raise found.processor.wrong("vision_feature_select_strategy", "default or full")
    return strategy == "default"


def _pinpoints(image: _File, edge: int, default: list[list[int]]) -> tuple[tuple[int, int], ...]:
    """Canvases (height, width), in the file's order, which decides ties."""
    found = image.values.get("image_grid_pinpoints", default)
    try:
        canvases = tuple(msgspec.convert(pair, tuple[int, int]) for pair in found)
    except (msgspec.ValidationError, TypeError):
        canvases = ()
    if not canvases or any(side < edge or side % edge for canvas in canvases for side in canvas):
        raise image.wrong("image_grid_pinpoints", f"a list of [height, width], each a multiple of {edge}")
    return canvases


def _blank_line_tokens(tokenizer: Path) -> int:
    """1 if the vocabulary has a token of two line breaks (byte-level BPE writes one as U+010A), else 2."""
    if not tokenizer.exists():
        return 1  # as every published checkpoint of these families
    text = tokenizer.read_bytes()
    return 1 if '"ĊĊ"'.encode() in text or b'"\\u010a\\u010a"' in text.lower() else 2


_Reader: TypeAlias = Callable[[_Checkpoint], VisionBudget]

_FAMILIES: dict[str, _Reader] = {
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "qwen3_vl_moe": _qwen,
    "qwen3_5": _qwen,
    "qwen3_5_moe": _qwen,
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "internvl": _internvl,
    "gemma3": _gemma3,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
    "mistral3": _pixtral,
}
"""By `model_type` of config.json."""
