"""Pictures on their way into the model: through the checkpoint's own processor, which finds nothing left to resize.

Families of one grid of cells take a picture as it was served. Those that cut tiles cut them from it: their processors
plan the same tiles for what is served as for the original (`images/tiles.py`, `images/anyres.py`).

The processor also says what a picture's placeholder becomes in the prompt: `<|image_pad|>` times the number of its
tokens for Qwen2-VL, rows and line breaks for others. That depends on sizes only, so it is asked with blank pictures and
kept; what a prompt costs is known before any pixel is touched.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image as PILImage
from transformers import AutoConfig, AutoProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import is_torchvision_available

from sightline.engines.checkpoint import CheckpointError
from sightline.errors import InvalidRequest
from sightline.images.budget import CellBudget, VisionBudget
from sightline.images.checkpoint import read_budget
from sightline.types import Image, Pixels

Tensors = dict[str, Any]
"""Of torch, by the names of the model's `forward`."""

_OF_TEXT: Final = {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "text_replacement_offsets"}
_PROBED: Final = ((640, 480), (300, 90), (90, 300), (1000, 1000))
"""Sizes in pixels with which rule and processor are compared when a model is loaded."""


class Pictures:
    """The processor of one model. Thread-safe."""

    def __init__(self, model_dir: Path, *, trust_remote_code: bool) -> None:
        """Raises `CheckpointError` when the processor and our rule for its family disagree on what a picture costs,
        `BudgetError` for a family that we have no rule for, `OSError` and `ValueError` as transformers does."""
        self.processor = _open_processor(model_dir, trust_remote_code=trust_remote_code)
        self.budget: VisionBudget = read_budget(model_dir)
        self.placeholder: str = self.processor.image_token
        # A request may ask for less than the checkpoint's least size, to which the processor would enlarge it again.
        self._as_served = {"do_resize": False} if isinstance(self.budget, CellBudget) else {}
        self._lock = threading.Lock()  # a fast tokenizer's settings are changed by every call
        self._expansion_of_size = lru_cache(maxsize=4096)(self._ask_expansion)
        for width, height in _PROBED:
            self._check(*self.budget.serve(width, height))

    def expansions(self, images: Sequence[Image]) -> list[str]:
        """What each picture's placeholder becomes. Raises `InvalidRequest` for a picture that is not at its size."""
        for image in images:
            self._refuse_other_sizes(image.served_width, image.served_height)
        return [self._expansion_of_size(image.served_width, image.served_height) for image in images]

    def tensors(self, images: Sequence[Image]) -> Tensors:
        """What the model takes for these pictures: `pixel_values`, and for some families the shapes beside them."""
        return self._process([image.pixels for image in images])[0] if images else {}

    def tokens(self, image: Image) -> int:
        return self.budget.tokens(image.served_width, image.served_height)

    def _process(self, pictures: Sequence[Pixels]) -> tuple[Tensors, list[str]]:
        with self._lock:
            out = self.processor(
                images=[PILImage.fromarray(np.ascontiguousarray(pixels)) for pixels in pictures],
                text=[self.placeholder * len(pictures)],
                return_tensors="pt",
                return_text_replacement_offsets=True,
                **self._as_served,
            )
        (replaced,) = out["text_replacement_offsets"]
        tensors = {name: value for name, value in out.items() if name not in _OF_TEXT}
        return tensors, [entry["replacement"] for entry in replaced]

    def _ask_expansion(self, width: int, height: int) -> str:
        return self._process([np.zeros((height, width, 3), np.uint8)])[1][0]

    def _refuse_other_sizes(self, width: int, height: int) -> None:
        if isinstance(budget := self.budget, CellBudget):
            fits = width % budget.cell == height % budget.cell == 0
            fits = fits and budget.tokens(width, height) <= budget.largest_tokens
        else:
            fits = budget.serve(width, height).tokens == budget.tokens(width, height)
        if not fits:
            served = budget.serve(width, height)
            raise InvalidRequest(
                f"A picture of {width}x{height} px must reach this model at {served.width}x{served.height} px.",
                param="messages",
            )

    def _check(self, width: int, height: int, tokens: int) -> None:
        """Counted in the prompt are at least the placeholders and at most all that the processor writes."""
        expansion = self._expansion_of_size(width, height)
        least, most = expansion.count(self.placeholder), len(self.processor.tokenizer.tokenize(expansion))
        if not least <= tokens <= most:
            raise CheckpointError(
                f"a picture of {width}x{height} px should cost {tokens} tokens, but the processor writes {most}"
            )


def _open_processor(model_dir: Path, *, trust_remote_code: bool) -> Any:
    """`AutoProcessor`, or without torchvision the same class without its part for videos, which needs it."""
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(model_dir, **options)
    if is_torchvision_available() or type(config) not in PROCESSOR_MAPPING:
        return AutoProcessor.from_pretrained(model_dir, **options)
    return _without_videos(PROCESSOR_MAPPING[type(config)]).from_pretrained(model_dir, **options)


def _without_videos(processor: Any) -> Any:
    def get_attributes(cls: Any) -> list[str]:
        return [name for name in processor.get_attributes() if name != "video_processor"]

    return type(processor.__name__, (processor,), {"get_attributes": classmethod(get_attributes)})
