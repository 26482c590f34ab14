"""What is sent, by how many clients: the cases of the benchmark."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from functools import cache

from sightline.bench.images import photograph

_SLOT = 16
"""Characters of base64 behind a picture, where each request has a number of its own."""
_SIDES = (640, 480)


@dataclass(frozen=True)
class Body:
    """A request's body; with more than one piece, a number stands between them that makes its pictures new ones."""

    pieces: tuple[bytes, ...]

    def numbered(self, number: int) -> bytes:
        return f"{number:0{_SLOT}d}".encode().join(self.pieces)

    @property
    def size(self) -> int:
        return sum(map(len, self.pieces)) + _SLOT * (len(self.pieces) - 1)


@dataclass(frozen=True)
class Case:
    name: str
    body: Body
    words: int
    """Of a right answer."""
    clients: int = 16
    rate: float | None = None
    """Requests a second of all clients together, at random times; None: each sends its next when it has its answer."""
    least: int = 32
    """Answers before anything is measured (pictures that are sent again have been decoded by then), and until it is."""
    once: bool = False
    """Each client sends one request, all at the same time; all of it is measured."""


def body(num_bytes: int, pictures: int, model: str, *, stream: bool = False, new: bool = False) -> Body:
    """About `num_bytes` with so many pictures (no two of them alike), or with none and as much text."""
    size = num_bytes // max(1, pictures) - 150
    files = [_picture(seed, size * 3 // 4) for seed in range(pictures)]
    parts = [{"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{file}HERE"}} for file in files]
    text = "What do you see? " * (num_bytes // 18 if not pictures else 1)
    request = {
        "model": model,
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}],
        "max_tokens": 64,
        "stream": stream,
    }
    pieces = json.dumps(request).encode().split(b"HERE")
    return Body(tuple(pieces) if new else (f"{0:0{_SLOT}d}".encode().join(pieces),))


@cache
def _picture(seed: int, num_bytes: int) -> str:
    """Base64 of a JPEG of that size; what follows its end does not matter to decoders."""
    image, quality = photograph(*_SIDES, seed=seed), 95
    while len(file := _jpeg(image, quality)) > num_bytes:
        quality -= 5
    file = file.ljust(num_bytes, b"\0")
    return base64.b64encode(file[: len(file) // 3 * 3]).decode()


def _jpeg(image: object, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)  # type: ignore[attr-defined]
    return file.getvalue()


def cases() -> tuple[Case, ...]:
    return (
        Case("2 KB", body(2_000, 0, "words-8"), 8),
        Case("200 KB", body(200_000, 2, "words-8"), 8),
        Case("2 MB", body(2_000_000, 16, "words-8"), 8),
        Case("2 MB, new pictures", body(2_000_000, 16, "words-8", new=True), 8, least=4),
        Case("64 chunks at once", body(500, 0, "words-64", stream=True), 64),
        Case("64 chunks, 10 ms apart", body(500, 0, "words-64-ms-10", stream=True), 64, clients=64),
        Case("200 KB, 100 a second", body(200_000, 2, "words-8"), 8, rate=100.0),
    )


def many_streams() -> Case:
    return Case("1,000 streams", body(500, 0, "words-64-ms-250", stream=True), 64, clients=1000, once=True)
