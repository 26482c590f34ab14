"""Pictures to load a server with: JPEGs of any size in bytes, no two of them the same file."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tests.reliability.client import DIALECTS, Json

_HERE = "HERE"


def photograph(num_bytes: int, width: int = 1600, height: int = 1200) -> bytes:
    """A JPEG of waves and noise; what it lacks to its size stands behind its end, where decoders do not look."""
    rows, columns = np.arange(height)[:, None], np.arange(width)[None, :]
    waves = 127 + 90 * np.sin(rows / 90) * np.cos(columns / 70)
    noise = np.random.default_rng(0).normal(0, 18, (height, width, 3))
    pixels = np.clip(waves[:, :, None] + noise, 0, 255).astype(np.uint8)
    best = b""
    for quality in range(50, 96, 5):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        if file.tell() > num_bytes:
            break
        best = file.getvalue()
    return best.ljust(num_bytes, b"\0")


@dataclass(frozen=True, slots=True)
class Body:
    """A request of a dialect whose picture is another file each time."""

    before: bytes
    after: bytes

    def numbered(self, number: int) -> bytes:
        """Sixteen characters of base64 behind the picture's end make it a new file."""
        return b"".join((self.before, f"{number:016d}".encode(), self.after))


def to_body(dialect: str, file: bytes, *, tokens: int, stream: bool) -> Body:
    whole = file[: len(file) // 3 * 3]
    request = {**_REQUESTS[dialect](tokens), "stream": stream}
    before, _, after = json.dumps(request).partition(_HERE)
    return Body(before.encode() + base64.b64encode(whole), after.encode())


def _chat(tokens: int) -> Json:
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{_HERE}"}},
        {"type": "text", "text": "What is this?"},
    ]
    return {"model": "m", "max_tokens": tokens, "messages": [{"role": "user", "content": content}]}


def _responses(tokens: int) -> Json:
    content = [
        {"type": "input_image", "image_url": f"data:image/jpeg;base64,{_HERE}"},
        {"type": "input_text", "text": "What is this?"},
    ]
    return {
        "model": "m", "max_output_tokens": tokens, "store": False, "input": [{"role": "user", "content": content}],
    }  # fmt: skip


def _messages(tokens: int) -> Json:
    source = {"type": "base64", "media_type": "image/jpeg", "data": _HERE}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "What is this?"}]
    return {"model": "m", "max_tokens": tokens, "messages": [{"role": "user", "content": content}]}


def _ollama(tokens: int) -> Json:
    message = {"role": "user", "content": "What is this?", "images": [_HERE]}
    return {"model": "m", "options": {"num_predict": tokens}, "messages": [message]}


_REQUESTS = {"chat": _chat, "responses": _responses, "messages": _messages, "ollama chat": _ollama}
SEEING = tuple(name for name in DIALECTS if name in _REQUESTS)
"""Dialects in which pictures can be sent here."""
