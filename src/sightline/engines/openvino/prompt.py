"""Messages to tokens and positions as Qwen2-VL takes them: a picture's placeholder becomes as many as its cells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sightline.engines.chat import ChatTemplate, PromptTokenizer, misplaced_pictures
from sightline.engines.openvino.blocks import PictureSpan
from sightline.engines.openvino.vision import Preprocessor, mrope_positions
from sightline.types import EngineRequest, Image, TokenCount


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    tokens: list[int]
    positions: npt.NDArray[np.int64]
    """[3, tokens]: frame, row and column (M-RoPE)."""
    next_position: int
    """Of the first generated token, in all three."""
    images: tuple[Image, ...]
    spans: tuple[PictureSpan, ...]
    """Where each picture's tokens stand."""

    @property
    def count(self) -> TokenCount:
        return TokenCount(len(self.tokens), tuple(span.end - span.begin for span in self.spans))


class PromptBuilder:
    """Builds prompts for one model. Thread-safe."""

    def __init__(
        self, model_dir: Path, preprocessor: Preprocessor, image_token_id: int, tool_format: str = "auto"
    ) -> None:
        """Raises `CheckpointError` when the tokenizer or the template is missing or broken."""
        self._preprocessor = preprocessor
        self._image_token_id = image_token_id
        self._template = ChatTemplate(model_dir, tool_format=tool_format)
        self._tokenizer = PromptTokenizer(model_dir)
        self.tool_format = self._template.tool_format
        self.encode_later = self._tokenizer.encode_later

    def build(self, request: EngineRequest) -> Prompt:
        """Raises `InvalidRequest` for messages that the template refuses, for pictures of an impossible size, and as
        `PromptTokenizer.plain`."""
        grids = [self._preprocessor.grid(image) for image in request.images]
        tokens: list[int] = []
        spans: list[PictureSpan] = []
        for token in self._tokens(request):
            if token != self._image_token_id:
                tokens.append(token)
                continue
            if len(spans) < len(grids):
                rows, columns = grids[len(spans)]
                image = request.images[len(spans)]
                identity = f"{image.digest}/{image.served_height}x{image.served_width}".encode()
                spans.append(PictureSpan(len(tokens), len(tokens) + rows * columns, identity))
                tokens += [token] * (rows * columns)
            else:
                raise misplaced_pictures()
        if len(spans) != len(grids):
            raise misplaced_pictures()
        places = [(span.begin, *grid) for span, grid in zip(spans, grids, strict=True)]
        positions, next_position = mrope_positions(len(tokens), places)
        return Prompt(tokens, positions, next_position, request.images, tuple(spans))

    def _tokens(self, request: EngineRequest) -> list[int]:
        """With one placeholder for each picture."""
        if request.prompt is not None:
            return self._tokenizer.plain(request.prompt)
        return self._tokenizer.tokenize(self._template.render(request))
