"""The files of a model directory, by the names that `optimum-cli export openvino` gives them."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

LANGUAGE: Final = "openvino_language_model.xml"
TEXT_EMBEDDINGS: Final = "openvino_text_embeddings_model.xml"
VISION_PATCHES: Final = "openvino_vision_embeddings_model.xml"
VISION_MERGER: Final = "openvino_vision_embeddings_merger_model.xml"
MODELS: Final = (LANGUAGE, TEXT_EMBEDDINGS, VISION_PATCHES, VISION_MERGER)

Weights = Literal["fp16", "int8"]
"""fp16: as the checkpoint has them, which today is fp16 or bf16; int8: as `compress.py` makes them."""


def ir_directory(model_dir: Path, weights: Weights) -> Path:
    """Where a model's IR lies: the int8 one beside the other, in a directory of its own."""
    return model_dir / "int8" if weights == "int8" else model_dir
