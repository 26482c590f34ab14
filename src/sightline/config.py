"""Settings and model configurations. The only file that reads the environment.

Both are frozen values, made once at start by the command line and passed down; nothing below asks the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

MIB = 1024 * 1024
PEEK = "peek"
"""The name of the embedded model, and the source that means it."""


class ImageLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What a picture may cost before anyone decodes it, and while."""

    max_bytes: int = 20 * MIB
    """Of one picture file."""
    max_pixels: int = 4096 * 4096
    """Counted after scaled decode, so that a 48-megapixel photograph works and a lossless bomb does not."""
    max_side: int = 16_384
    max_images: int = 64
    """In one request, whatever the model allows."""
    decoders: int = 2
    """Decoder processes at once."""
    decoder_memory_bytes: int = 1024 * MIB
    """Address space of one decoder."""
    decoder_cpu_s: int = 5
    """CPU seconds for one picture."""
    background: tuple[int, int, int] = (255, 255, 255)
    """What transparent pictures are laid on."""


class HttpLimits(msgspec.Struct, frozen=True, kw_only=True):
    max_body_bytes: int = 64 * MIB
    max_messages: int = 1_000
    max_parts: int = 2_000
    max_json_depth: int = 64
    max_choices: int = 8
    keepalive_s: float = 15.0
    """Between `: ping` comments on an idle event stream."""


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One served model: a name, the engine that runs it, where it lives."""

    name: str
    engine: str = "openvino"
    source: str = PEEK
    """`peek`, or a directory that holds the model."""
    options: Mapping[str, Any] = {}
    """The engine's own options, checked by the engine."""
    max_concurrent: int = 16
    """Sequences that run at once; more wait."""
    max_queue: int = 256
    """Requests that may wait; more are refused with 503 and a Retry-After."""
    start_timeout_s: float = 120.0

    @property
    def path(self) -> Path:
        """The directory of the model's files."""
        return Path(__file__).parent / "peek" / "model" if self.source == PEEK else Path(self.source)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    host: str = "127.0.0.1"
    port: int = 8000
    models: tuple[ModelConfig, ...] = (ModelConfig(name=PEEK),)
    allowed_hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    """Values of the Host header that are answered (ports are ignored); `*` for any."""
    request_timeout_s: float = 600.0
    """The deadline of a request that names none."""
    images: ImageLimits = ImageLimits()
    http: HttpLimits = HttpLimits()
    log_level: str = "info"


def environment(name: str, default: str | None = None) -> str | None:
    """The value of `SIGHTLINE_<NAME>`, or the default. Every variable we read goes through here."""
    return os.environ.get(f"SIGHTLINE_{name}", default)
