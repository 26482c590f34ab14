"""The files of a model directory, by the names that `optimum-cli export openvino` gives them."""

from __future__ import annotations

from typing import Final

LANGUAGE: Final = "openvino_language_model.xml"
TEXT_EMBEDDINGS: Final = "openvino_text_embeddings_model.xml"
VISION_PATCHES: Final = "openvino_vision_embeddings_model.xml"
VISION_MERGER: Final = "openvino_vision_embeddings_merger_model.xml"
MODELS: Final = (LANGUAGE, TEXT_EMBEDDINGS, VISION_PATCHES, VISION_MERGER)
