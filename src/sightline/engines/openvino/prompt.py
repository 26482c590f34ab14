"""Messages to tokens: the checkpoint's own chat template, and user text that can never become a special token.

The template is rendered with an unguessable sentinel in the place of every text, so that what the template wrote and
what a person wrote stay apart. Special tokens are looked for only in what the template wrote; everything else is plain
text to the tokenizer, whatever it looks like. Runs of plain text are tokenised in one piece, the template's and the
person's together, which gives the reference's tokens.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import jinja2
import numpy as np
import numpy.typing as npt
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from sightline.engines.openvino.blocks import PictureSpan
from sightline.engines.openvino.checkpoint import CheckpointError, read_json
from sightline.engines.openvino.vision import Preprocessor, mrope_positions
from sightline.errors import InvalidRequest, UnsupportedFeature
from sightline.types import EngineRequest, Image, Message, Text, TokenCount

_IMAGE: Final = {"type": "image"}


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

    def __init__(self, model_dir: Path, preprocessor: Preprocessor, image_token_id: int) -> None:
        """Raises `CheckpointError` when the tokenizer or the template is missing or broken."""
        self._preprocessor = preprocessor
        self._image_token_id = image_token_id
        self._template = _compile(_read_template(model_dir))
        definition = read_json(model_dir / "tokenizer.json")
        self._special = {entry["content"]: int(entry["id"]) for entry in definition["added_tokens"]}
        longest_first = sorted(self._special, key=len, reverse=True)
        self._split_special = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")").split
        # A tokenizer that has never heard of special tokens cannot be talked into one.
        self._plain = Tokenizer.from_str(json.dumps({**definition, "added_tokens": [], "post_processor": None}))

    def build(self, request: EngineRequest) -> Prompt:
        """Raises `InvalidRequest` for messages that the template refuses and for pictures of an impossible size,
        `UnsupportedFeature` for tool calls."""
        grids = [self._preprocessor.grid(image) for image in request.images]
        rendered, texts = self._render(request)
        tokens: list[int] = []
        spans: list[PictureSpan] = []
        for token in self._tokenize(rendered, texts):
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
                raise _misplaced()
        if len(spans) != len(grids):
            raise _misplaced()
        places = [(span.begin, *grid) for span, grid in zip(spans, grids, strict=True)]
        positions, next_position = mrope_positions(len(tokens), places)
        return Prompt(tokens, positions, next_position, request.images, tuple(spans))

    def _render(self, request: EngineRequest) -> tuple[list[str], list[str]]:
        """What the template wrote, in the pieces between texts, and the texts: pieces[0] texts[0] pieces[1] …"""
        mark = secrets.token_hex(16)
        texts: list[str] = []

        def sentinel(text: str) -> str:
            texts.append(_well_formed(text))
            return f"{mark}:{len(texts) - 1};"

        messages = [_to_template(message, sentinel) for message in request.messages]
        try:
            rendered = self._template.render(messages=messages, add_generation_prompt=True, tools=None)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            reason = str(error).replace(mark, "…")[:200]
            raise InvalidRequest(
                f"This model's chat template refuses these messages: {reason}", param="messages"
            ) from error
        pieces = re.split(rf"{mark}:(\d+);", rendered)
        return pieces[0::2], [texts[int(number)] for number in pieces[1::2]]

    def _tokenize(self, pieces: Sequence[str], texts: Sequence[str]) -> list[int]:
        tokens: list[int] = []
        plain = ""
        for piece, text in zip(pieces, [*texts, ""], strict=True):
            for part in self._split_special(piece):
                if part in self._special:
                    tokens += self._encode(plain)
                    tokens.append(self._special[part])
                    plain = ""
                else:
                    plain += part
            plain += text
        return tokens + self._encode(plain)

    def _encode(self, text: str) -> list[int]:
        return list(self._plain.encode(text, add_special_tokens=False).ids) if text else []


def _well_formed(text: str) -> str:
    """Half of a surrogate pair, which JSON can hold and UTF-8 cannot, becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _misplaced() -> InvalidRequest:
    return InvalidRequest(
        "This model's chat template does not take pictures where the messages have them; put them in a user message.",
        param="messages",
    )


def _to_template(message: Message[Image], sentinel: Any) -> dict[str, Any]:
    """A message as chat templates expect it: a string where there is only text, else a list of parts."""
    if message.tool_calls:
        raise UnsupportedFeature("This model does not take tool calls.", param="messages")
    if all(isinstance(part, Text) for part in message.content):
        text = "".join(part.text for part in message.content if isinstance(part, Text))
        return {"role": message.role, "content": sentinel(text) if text else ""}
    parts = [
        {"type": "text", "text": sentinel(part.text)} if isinstance(part, Text) else _IMAGE for part in message.content
    ]
    return {"role": message.role, "content": parts}


def _read_template(model_dir: Path) -> str:
    """From where transformers looks for it: a file of its own, or a key of `chat_template.json` or of
    `tokenizer_config.json`."""
    if (file := model_dir / "chat_template.jinja").exists():
        return file.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (model_dir / name).exists() and isinstance(
            template := read_json(model_dir / name).get("chat_template"), str
        ):
            return template
    raise CheckpointError("there is no chat template (chat_template.jinja, or a key of tokenizer_config.json)")


def _compile(source: str) -> jinja2.Template:
    """In the sandbox and with the settings that transformers uses (`utils/chat_template_utils.py`)."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise CheckpointError(f"chat template: {error}") from error


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
