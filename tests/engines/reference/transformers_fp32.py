"""The reference: transformers' Qwen2-VL in fp32 on the CPU. The only file of the tests that imports torch.

The image processor, the tokenizer and the chat template are used alone: `Qwen2VLProcessor`, which ties them together,
wants torchvision for its video side, and the CPU build of torch has no matching one. What it does for pictures is done
in `Reference.prompt` (a placeholder becomes as many as the picture has tokens) and by `mm_token_type_ids` below.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as PILImage
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.engines.reference.pairs import MAX_TOKENS, Pair

_PLACEHOLDER = "<|image_pad|>"


@dataclass(frozen=True, slots=True)
class Seen:
    """Pictures as the model takes them."""

    pixel_values: torch.Tensor
    """[patches, 1176] f32, normalised."""
    grid: list[list[int]]
    """For each picture: frames (1), rows and columns of patches."""


@dataclass(frozen=True, slots=True)
class Answer:
    prompt_ids: list[int]
    tokens: list[int]
    """Greedy, with the end-of-sequence token where it came."""
    logprobs: list[float]
    """Of each token, natural logarithm."""
    margins: list[float]
    """For each token: its logit less the runner-up's. Near 0 is a near tie, where rounding may decide."""
    text: str


class Reference:
    def __init__(self, model_dir: Path) -> None:
        torch.set_num_threads(1)  # sums in one order on every machine; the model is too small for more to pay
        self._model: Any = Qwen2VLForConditionalGeneration.from_pretrained(
            model_dir, dtype=torch.float32, attn_implementation="eager"
        )
        self._model.eval()
        self._processor: Any = Qwen2VLImageProcessorPil.from_pretrained(model_dir)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(model_dir)
        self._placeholder: Any = self._tokenizer.convert_tokens_to_ids(_PLACEHOLDER)

    @property
    def budget(self) -> tuple[int, int, int]:
        """Cell in pixels, min_pixels, max_pixels."""
        p = self._processor
        return p.patch_size * p.merge_size, p.size.shortest_edge, p.size.longest_edge

    def see_files(self, files: Sequence[bytes]) -> Seen:
        """Pictures from their files, decoded, resized and normalised by the reference's own processor."""
        return self._see([PILImage.open(io.BytesIO(file)).convert("RGB") for file in files])

    def see_pixels(self, pixels: Sequence[np.ndarray[Any, Any]]) -> Seen:
        """Pictures that are already at the size to be served."""
        return self._see([PILImage.fromarray(p) for p in pixels], do_resize=False)

    def resized(self, file: bytes) -> np.ndarray[Any, Any]:
        """The reference's resized pixels, 0..255, as patches [patches, 3, 14, 14]."""
        return self._unscaled(PILImage.open(io.BytesIO(file)).convert("RGB"))

    def as_patches(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Pixels at the served size, 0..255, in the same layout as `resized`."""
        return self._unscaled(PILImage.fromarray(pixels), do_resize=False)

    def answer(self, pair: Pair, seen: Seen | None) -> Answer:
        """The greedy answer to the pair; `seen` is None for text alone."""
        ids = self.prompt(pair, seen.grid if seen else [])
        input_ids = torch.tensor([ids])
        pictures: dict[str, torch.Tensor] = {}
        if seen:
            pictures = {"pixel_values": seen.pixel_values, "image_grid_thw": torch.tensor(seen.grid)}
        with torch.inference_mode():
            out = self._model.generate(
                input_ids=input_ids,
                attention_mask=torch.ones_like(input_ids),
                mm_token_type_ids=input_ids.eq(self._placeholder).int(),
                **pictures,
                do_sample=False,
                max_new_tokens=MAX_TOKENS,
                return_dict_in_generate=True,
                output_logits=True,
            )
        tokens = out.sequences[0, len(ids) :].tolist()
        steps = torch.stack(out.logits)[:, 0].double()
        top = steps.topk(2).values
        assert steps.argmax(-1).tolist() == tokens  # greedy, and no logits processor changed anything
        logprobs = steps.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        return Answer(ids, tokens, logprobs.tolist(), (top[:, 0] - top[:, 1]).tolist(), text)

    def prompt(self, pair: Pair, grid: Sequence[Sequence[int]]) -> list[int]:
        """Token ids of the pair's prompt. None of our pairs' texts holds a special token's name."""
        messages = [
            {
                "role": turn.role,
                "content": [
                    {"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in turn.parts
                ],
            }
            for turn in pair.turns
        ]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        merge = self._processor.merge_size**2
        for frames, rows, columns in grid:
            text = text.replace(_PLACEHOLDER, "<|one|>" * (frames * rows * columns // merge), 1)
        assert _PLACEHOLDER not in text
        ids: list[int] = self._tokenizer(text.replace("<|one|>", _PLACEHOLDER), add_special_tokens=False)["input_ids"]
        return ids

    def _see(self, pictures: list[PILImage.Image], **kwargs: Any) -> Seen:
        out = self._processor(images=pictures, return_tensors="pt", **kwargs)
        return Seen(out["pixel_values"], out["image_grid_thw"].tolist())

    def _unscaled(self, picture: PILImage.Image, **kwargs: Any) -> np.ndarray[Any, Any]:
        out = self._processor(images=[picture], return_tensors="np", do_rescale=False, do_normalize=False, **kwargs)
        patches: np.ndarray[Any, Any] = out["pixel_values"]
        size = self._processor.patch_size
        return patches.reshape(-1, 3, self._processor.temporal_patch_size, size, size)[:, :, 0]  # the frames are equal
